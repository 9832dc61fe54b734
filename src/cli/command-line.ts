import { Command, CommanderError } from "commander";
import { packageVersion } from "../bus/process/package-version.ts";
import { TensorBusError } from "../errors.ts";
import { agentCommand } from "./agent/command.ts";
import { demoCommand, demoRankCommand, demoSocketCommand } from "./demo/command.ts";
import { diffCommand } from "./diff/command.ts";
import { doctorCommand } from "./doctor/command.ts";
import { explainCommand } from "./explain/command.ts";
import { planCommand } from "./plan/command.ts";
import { reshardCommand, reshardRankCommand } from "./reshard/command.ts";
import { type CommandContext, type CommandStreams, createContext } from "./ui/context.ts";
import { OutputClosed } from "./ui/output.ts";

type CommandFactory = (context: CommandContext) => Command;

/** The commands, in the order of the help. Each is a file of its own. */
const commands: readonly CommandFactory[] = [
  planCommand,
  diffCommand,
  explainCommand,
  reshardCommand,
  agentCommand,
  demoCommand,
  doctorCommand,
];
/** What commands start as processes of their own. */
const workers: readonly CommandFactory[] = [reshardRankCommand, demoRankCommand, demoSocketCommand];

const usageError = 2;
const failed = 4;

/**
 * Runs one command line and returns its exit code: 0 done, 1 a check failed, 2 bad input, 3 the environment lacks
 * something, 4 a transfer failed. Errors become one line on stderr, with `--debug` their stack and values too.
 */
export async function runCommandLine(argv: readonly string[], streams: CommandStreams): Promise<number> {
  let exitCode = 0;
  const context = createContext(streams, (code) => {
    exitCode = code;
  });
  const program = createProgram(context);
  try {
    await program.parseAsync([...argv], { from: "user" });
    return exitCode;
  } catch (error) {
    if (error instanceof OutputClosed) return exitCode;
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : usageError;
    await context.stderr
      .write(describeError(error, argv.includes("--debug"), context))
      .catch(() => undefined);
    return error instanceof TensorBusError ? error.exitCode : failed;
  }
}

function createProgram(context: CommandContext): Command {
  const program = new Command("tensorbus")
    .description("Plans and moves sharded tensors between jobs: any DTensor layout to any other.")
    .version(packageVersion(), "-V, --version", "print the version")
    .option("--debug", "print stacks and values of errors")
    .helpCommand("help [command]", "print the help of a command")
    .addHelpText("after", examples);
  for (const create of commands) program.addCommand(create(context));
  for (const create of workers) program.addCommand(create(context), { hidden: true });
  for (const command of [program, ...program.commands]) {
    command
      .helpOption("-h, --help", "print this help")
      .exitOverride()
      .configureOutput({
        writeOut: (text) => context.stdout.stream.write(text),
        writeErr: (text) => context.stderr.stream.write(text),
        getOutHelpWidth: () => context.stdout.columns ?? 100,
        getErrHelpWidth: () => context.stderr.columns ?? 100,
        outputError: (text, write) => write(`${usageMessage(text, context)}\n`),
      });
  }
  return program;
}

const examples = `
Examples:
  $ tensorbus demo                        a trainer and an engine, several rounds, every byte verified
  $ tensorbus plan spec.yaml --verify     what moving a model would take, and the proof that the plan is right
  $ tensorbus doctor                      what this machine has and lacks

Exit codes:
  0 done, 1 a check failed, 2 bad input, 3 the environment lacks something, 4 a transfer failed`;

/** Commander's message as one line. */
function usageMessage(text: string, { stderr }: CommandContext): string {
  return text
    .trim()
    .replaceAll(/\s*\n\s*/g, " ")
    .replace(/^error:/, stderr.colors.red("error:"));
}

/** One line; the rest only for who asks for it. */
function describeError(error: unknown, debug: boolean, { stderr }: CommandContext): string {
  const { colors } = stderr;
  const known = error instanceof TensorBusError;
  const message = error instanceof Error ? error.message : String(error);
  const line = `${colors.red("error:")} ${message.replaceAll(/\s*\n\s*/g, " ")}${known ? colors.dim(` (${error.code})`) : ""}\n`;
  if (!debug) return known ? line : `${line}This is a mistake of tensorbus itself; --debug shows where.\n`;
  const details = known ? `${JSON.stringify(error.details, plainValue, 2)}\n` : "";
  return line + details + describeStack(error);
}

function describeStack(error: unknown): string {
  if (!(error instanceof Error)) return "";
  const cause =
    error.cause === undefined ? "" : `caused by ${describeStack(error.cause) || `${String(error.cause)}\n`}`;
  return `${error.stack}\n${cause}`;
}

function plainValue(_: string, value: unknown): unknown {
  return typeof value === "bigint" ? value.toString() : value;
}
