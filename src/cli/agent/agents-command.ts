import { randomBytes } from "node:crypto";
import { Command } from "commander";
import { type ExitCode, TensorBusError } from "../../errors.ts";
import { serveTcpStore, type TcpStoreServer } from "../../store/tcp-server.ts";
import type { CommandContext } from "../ui/context.ts";
import { AgentSupervisor, formatSides, parseRanks, parseSides } from "./supervisor.ts";

interface AgentsFlags {
  readonly side: readonly string[];
  readonly ranks?: string;
  readonly store?: string;
  readonly namespace?: string;
  readonly untilStdinEnds?: boolean;
}

/** `tensorbus agents`: runs the agents of this host until SIGTERM or SIGINT. */
export function agentsCommand(context: CommandContext): Command {
  return new Command("agents")
    .description("Runs the agents of this host under one process, until SIGTERM.")
    .option("--side <name=ranks...>", "the ranks of a side, such as trainer=0..3; the same on every host", [])
    .option("--ranks <ranks>", "the ranks of this host (default: those of all sides)")
    .option(
      "--store <url>",
      "what all agents share (TENSOR_BUS_STORE; default: one on loopback, served here)",
    )
    .option("--namespace <name>", "keeps jobs apart (TENSOR_BUS_NAMESPACE)")
    .option("--until-stdin-ends", "end with whoever has started this, too")
    .argument("[flags...]", "flags of `tensorbus agent`, behind --: they go to every agent")
    .addHelpText(
      "after",
      `
Clients find their agent by the name of their side and their RANK: weights of side engine, RANK 1, above use agent 5. Says
"ready: agents …" on stdout once all take commands. One that ends ends the others, and its exit code is this one's. A first
SIGTERM drains all; a second one cancels what is under way. Without a secret (TENSOR_BUS_SECRET), agents whose store is
served here get one of their own.

Examples:
  $ tensorbus agents --side trainer=0..3 --side engine=4..5
  $ tensorbus agents --ranks 0..7 --store etcd://10.0.0.5:2379 -- --transport tcp --host 10.0.0.7`,
    )
    .action((extra: string[], flags: AgentsFlags) => runAgents(context, flags, extra));
}

async function runAgents(
  context: CommandContext,
  flags: AgentsFlags,
  extra: readonly string[],
): Promise<void> {
  const { environment } = context;
  const sides = parseSides(flags.side);
  const ranks =
    flags.ranks === undefined
      ? [...new Set([...sides.values()].flat())].sort((a, b) => a - b)
      : parseRanks("--ranks", flags.ranks);
  if (ranks.length === 0) throw new TensorBusError("TB_SPEC", "no ranks were given: use --side or --ranks");
  const named = flags.store ?? environment["TENSOR_BUS_STORE"];
  const server = named ? undefined : await serveTcpStore({ host: "127.0.0.1", port: 0 });
  try {
    const store = named ?? `tcp://127.0.0.1:${server!.port}`;
    await superviseAgents(context, { ranks, sides, store, server, flags, extra });
  } finally {
    await server?.close();
  }
}

interface Supervised {
  readonly ranks: readonly number[];
  readonly sides: ReadonlyMap<string, readonly number[]>;
  readonly store: string;
  readonly server: TcpStoreServer | undefined;
  readonly flags: AgentsFlags;
  readonly extra: readonly string[];
}

async function superviseAgents(context: CommandContext, given: Supervised): Promise<void> {
  const { ranks, sides, store, server, flags, extra } = given;
  const supervisor = new AgentSupervisor({
    ranks,
    entry: process.argv[1]!,
    flags: [
      ...["--store", store],
      ...(server === undefined ? [] : ["--no-serve"]),
      ...(flags.namespace === undefined ? [] : ["--namespace", flags.namespace]),
      ...extra,
    ],
    environment: {
      ...context.environment,
      ...(sides.size === 0 ? {} : { TENSOR_BUS_SIDES: formatSides(sides) }),
      ...secretOf(context.environment, server),
    },
    onLine: (rank, line) => {
      context.stderr.write(`[rank ${rank}] ${line}\n`).catch(() => undefined);
    },
  });
  const stop = () => supervisor.stop();
  process.on("SIGTERM", stop);
  process.on("SIGINT", stop);
  if (flags.untilStdinEnds) process.stdin.resume().once("end", stop).once("error", stop);
  void supervisor.ready.then(() =>
    context.stdout.line(`ready: agents ${ranks.join(", ")}, store ${store}`).catch(() => undefined),
  );
  await supervisor.over;
  process.off("SIGTERM", stop);
  process.off("SIGINT", stop);
  process.stdin.pause();
  const { rank, exitCode, how } = supervisor.ended!;
  if (exitCode === 0) return;
  await context.stderr.write(`error: the agent of rank ${rank} ${how}\n`);
  context.exit(isExitCode(exitCode) ? exitCode : failed);
}

const failed = 4;

function isExitCode(code: number): code is ExitCode {
  return code >= 1 && code <= 4;
}

/** Only the processes of this run can talk to each other, unless somebody has said who can. */
function secretOf(environment: NodeJS.ProcessEnv, server: TcpStoreServer | undefined): NodeJS.ProcessEnv {
  const known = environment["TENSOR_BUS_SECRET"] || environment["TENSOR_BUS_SECRET_FILE"];
  return known || server === undefined ? {} : { TENSOR_BUS_SECRET: randomBytes(32).toString("hex") };
}
