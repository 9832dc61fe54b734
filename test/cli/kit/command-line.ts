import { Writable } from "node:stream";
import { runCommandLine } from "../../../src/cli/command-line.ts";

interface CommandResult {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a command line in this process, with streams that are no terminals. */
export async function runCli(...argv: string[]): Promise<CommandResult> {
  const [stdout, stderr] = [collector(), collector()];
  const code = await runCommandLine(argv, {
    stdout: stdout.stream,
    stderr: stderr.stream,
    environment: process.env,
  });
  return { code, stdout: stdout.text(), stderr: stderr.text() };
}

function collector() {
  const parts: string[] = [];
  const stream = new Writable({
    write(data: Buffer, _encoding, done) {
      parts.push(data.toString());
      done();
    },
  });
  return { stream, text: () => parts.join("") };
}
