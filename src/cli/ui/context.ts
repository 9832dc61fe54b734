import type { ExitCode } from "../../errors.ts";
import { Output, type OutputStream } from "./output.ts";

/** What a command runs in: a process's own streams and environment, or a test's. */
export interface CommandContext {
  readonly stdout: Output;
  readonly stderr: Output;
  readonly environment: NodeJS.ProcessEnv;
  /** Sets the exit code of a command that ended well but found something, or watched others end. */
  exit(code: 0 | ExitCode): void;
  /** A command that lives on says that it has done what it does to start. */
  started(): void;
}

export interface CommandStreams {
  readonly stdout: OutputStream;
  readonly stderr: OutputStream;
  readonly environment: NodeJS.ProcessEnv;
  readonly started?: () => void;
}

export function createContext(
  { stdout, stderr, environment, started = () => {} }: CommandStreams,
  exit: CommandContext["exit"],
): CommandContext {
  return {
    stdout: new Output(stdout, environment),
    stderr: new Output(stderr, environment),
    environment,
    exit,
    started,
  };
}
