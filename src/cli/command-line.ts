import { Command, CommanderError } from "commander";
import { packageVersion } from "../bus/process/package-version.ts";
import { explained, TensorBusError } from "../errors.ts";
import { type CommandContext, type CommandStreams, createContext } from "./ui/context.ts";
import { OutputClosed } from "./ui/output.ts";

/** A command of the help: it is loaded once it is called, so that each loads only what it needs. */
interface CommandEntry {
  readonly name: string;
  readonly summary: string;
  readonly load: () => Promise<(context: CommandContext) => Command>;
}

/** In the order of the help. */
const commands: readonly CommandEntry[] = [
  {
    name: "plan",
    summary: "Plans the transfer of a spec and says what it would take, without moving anything.",
    load: async () => (await import("./plan/command.ts")).planCommand,
  },
  {
    name: "diff",
    summary: "Says what changed between two plans: tensors, ranks and links, and by how many bytes.",
    load: async () => (await import("./diff/command.ts")).diffCommand,
  },
  {
    name: "explain",
    summary: "Says where each part of a rank's tensor comes from and goes to, stage by stage.",
    load: async () => (await import("./explain/command.ts")).explainCommand,
  },
  {
    name: "layout",
    summary: "Says which parameters a rank of an engine or a trainer has, and what they are made of.",
    load: async () => (await import("./layout/command.ts")).layoutCommand,
  },
  {
    name: "reshard",
    summary:
      "Moves a checkpoint from one layout to another: to ranks, to the files that vLLM loads, and back.",
    load: async () => (await import("./reshard/command.ts")).reshardCommand,
  },
  {
    name: "agent",
    summary: "Runs the agent of one rank, until SIGTERM.",
    load: async () => (await import("./agent/command.ts")).agentCommand,
  },
  {
    name: "agents",
    summary: "Runs the agents of this host under one process, until SIGTERM.",
    load: async () => (await import("./agent/agents-command.ts")).agentsCommand,
  },
  {
    name: "demo",
    summary:
      "Hands the weights of a trainer to an engine, both on this machine, for several rounds, and verifies every byte.",
    load: async () => (await import("./demo/command.ts")).demoCommand,
  },
  {
    name: "doctor",
    summary: "Says what this machine has, what is missing, and how to get it.",
    load: async () => (await import("./doctor/command.ts")).doctorCommand,
  },
];

/** What commands start as processes of their own; the help does not list them. */
const workers: readonly CommandEntry[] = [
  {
    name: "reshard-rank",
    summary: "One rank of reshard.",
    load: async () => (await import("./reshard/command.ts")).reshardRankCommand,
  },
  {
    name: "reshard-thread",
    summary: "One thread of reshard.",
    load: async () => (await import("./reshard/thread.ts")).reshardThreadCommand,
  },
  {
    name: "demo-rank",
    summary: "One rank's client in the demo.",
    load: async () => (await import("./demo/command.ts")).demoRankCommand,
  },
  {
    name: "demo-socket",
    summary: "The sender of demo's raw-socket ceiling.",
    load: async () => (await import("./demo/command.ts")).demoSocketCommand,
  },
];

const usageError = 2;
const failed = 4;

/**
 * Runs one command line and returns its exit code: 0 done, 1 a check failed, 2 bad input, 3 something is missing in the
 * environment, 4 a transfer failed. Errors become one line on stderr, with `--debug` their stack and values too.
 */
export async function runCommandLine(argv: readonly string[], streams: CommandStreams): Promise<number> {
  let exitCode = 0;
  const context = createContext(streams, (code) => {
    exitCode = code;
  });
  const program = await createProgram(argv, context);
  try {
    await program.parseAsync([...argv], { from: "user" });
    return exitCode;
  } catch (error) {
    if (error instanceof OutputClosed) return exitCode;
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : usageError;
    await context.stderr
      .write(describeError(error, argv.includes("--debug"), context))
      .catch(() => undefined);
    const known = explained(error);
    return known instanceof TensorBusError ? known.exitCode : failed;
  }
}

async function createProgram(argv: readonly string[], context: CommandContext): Promise<Command> {
  const program = new Command("tensorbus")
    .description("Plans and moves sharded tensors between jobs: any DTensor layout to any other.")
    .version(packageVersion(), "-V, --version", "print the version")
    .option("--debug", "print stacks and values of errors")
    .helpCommand("help [command]", "print the help of a command")
    .addHelpText("after", examples);
  const called = argv.find((word) => !word.startsWith("-") && word !== "help");
  const add = async ({ name, summary, load }: CommandEntry, hidden: boolean) => {
    const command = name === called ? (await load())(context) : new Command(name);
    program.addCommand(command.description(summary), { hidden });
  };
  for (const entry of commands) await add(entry, false);
  for (const entry of workers) await add(entry, true);
  for (const command of [program, ...program.commands]) {
    requireAfterUnknown(command);
    command
      .helpOption("-h, --help", "print this help")
      .exitOverride()
      .configureOutput({
        writeOut: (text) => context.stdout.stream.write(context.stdout.render(text)),
        writeErr: (text) => context.stderr.stream.write(context.stderr.render(text)),
        getOutHelpWidth: () => context.stdout.columns ?? 100,
        getErrHelpWidth: () => context.stderr.columns ?? 100,
        outputError: (text, write) => write(`${usageMessage(text, context)}\n`),
      });
  }
  return program;
}

/** An option that is mistyped is unknown, and not the one missing that was meant: what is required is asked for last. */
function requireAfterUnknown(command: Command): void {
  const required = command.options.filter((option) => option.mandatory);
  for (const option of required) option.makeOptionMandatory(false);
  command.hook("preAction", () => {
    const missing = required.find((option) => command.getOptionValue(option.attributeName()) === undefined);
    if (missing !== undefined) command.error(`error: required option '${missing.flags}' not specified`);
  });
}

const examples = `
Examples:
  $ tensorbus demo                        a trainer and an engine, several rounds, every byte verified
  $ tensorbus plan spec.yaml --verify     what moving a model would take, and the proof that the plan is right
  $ tensorbus doctor                      what this machine has, what is missing

Exit codes:
  0 done, 1 a check failed, 2 bad input, 3 something is missing in the environment, 4 a transfer failed`;

/** Commander's message as one line. */
function usageMessage(text: string, { stderr }: CommandContext): string {
  return text
    .trim()
    .replaceAll(/\s*\n\s*/g, " ")
    .replace(/^error:/, stderr.colors.red("error:"));
}

/** One line; the rest only for who asks for it. */
function describeError(thrown: unknown, debug: boolean, { stderr }: CommandContext): string {
  const { colors } = stderr;
  const error = explained(thrown);
  const known = error instanceof TensorBusError;
  const message = error instanceof Error ? error.message : String(error);
  const line = `${colors.red("error:")} ${message.replaceAll(/\s*\n\s*/g, " ")}${known ? colors.dim(` (${error.code})`) : ""}\n`;
  if (!debug) return known ? line : `${line}This is a fault of tensorbus itself; --debug shows where.\n`;
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
