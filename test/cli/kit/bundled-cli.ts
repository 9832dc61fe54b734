import { type ChildProcess, spawn } from "node:child_process";
import { join } from "node:path";
import { writeCommandLine } from "../../../scripts/cli-bundle.mjs";
import { built } from "../../kit/builds.ts";

interface FinishedCommand {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** The command line as users run it: a script of its own, in processes of its own. */
export class BundledCli {
  readonly script: string;
  readonly #flags: readonly string[];

  /** `flags` are those of Node.js. */
  constructor(script: string, flags: readonly string[] = []) {
    this.script = script;
    this.#flags = flags;
  }

  /** The one that all files of a run share. */
  static async build(): Promise<BundledCli> {
    return new BundledCli(join(await built("cli", writeCommandLine), "cli.js"));
  }

  start(argv: readonly string[], environment: NodeJS.ProcessEnv = {}): RunningCommand {
    return new RunningCommand(
      spawn(process.execPath, [...this.#flags, this.script, ...argv], {
        stdio: ["ignore", "pipe", "pipe"],
        env: { ...process.env, ...environment },
      }),
    );
  }

  run(...argv: string[]): Promise<FinishedCommand> {
    return this.start(argv).finished;
  }
}

export class RunningCommand {
  readonly process: ChildProcess;
  readonly finished: Promise<FinishedCommand>;
  #stdout = "";
  #stderr = "";
  readonly #listeners = new Set<() => void>();

  constructor(child: ChildProcess) {
    this.process = child;
    child.stdout!.on("data", (data: Buffer) => {
      this.#stdout += data.toString();
      for (const listener of this.#listeners) listener();
    });
    child.stderr!.on("data", (data: Buffer) => {
      this.#stderr += data.toString();
      for (const listener of this.#listeners) listener();
    });
    this.finished = new Promise((resolve) => {
      child.once("close", (code) => resolve({ code, stdout: this.#stdout, stderr: this.#stderr }));
    });
  }

  /** Resolves once the output, stderr included, holds the text; rejects if the command ends without it. */
  async printed(text: string): Promise<void> {
    await Promise.race([
      new Promise<void>((resolve) => {
        const check = () => {
          if (!`${this.#stdout}${this.#stderr}`.includes(text)) return;
          this.#listeners.delete(check);
          resolve();
        };
        this.#listeners.add(check);
        check();
      }),
      this.finished.then(({ stdout, stderr }) => {
        if (!`${stdout}${stderr}`.includes(text))
          throw new Error(`ended without ${text}: ${stdout}${stderr}`);
      }),
    ]);
  }
}
