/** What `tensorbus agents` does. */
import { randomBytes } from "node:crypto";
import { type ExitCode, TensorBusError } from "../../errors.ts";
import { serveTcpStore, type TcpStoreServer } from "../../store/tcp-server.ts";
import type { CommandContext } from "../ui/context.ts";
import type { AgentsFlags } from "./agents-command.ts";
import { formatSides, parseRanks, parseSides } from "./ranks.ts";
import { AgentSupervisor } from "./supervisor.ts";

/** Starts the agents of this host, and watches over them until they end. */
export async function runAgents(
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
  const perProcess = Number(flags.perProcess);
  if (!Number.isSafeInteger(perProcess) || perProcess < 1) {
    throw new TensorBusError("TB_SPEC", `--per-process must be at least 1, not ${flags.perProcess}`, {
      details: { "--per-process": flags.perProcess },
    });
  }
  const named = flags.store ?? environment["TENSOR_BUS_STORE"];
  const server = named ? undefined : await serveTcpStore({ host: "127.0.0.1", port: 0 });
  try {
    const store = named ?? `tcp://127.0.0.1:${server!.port}`;
    await superviseAgents(context, {
      groups: groupsOf(ranks, perProcess),
      sides,
      store,
      server,
      flags,
      extra,
    });
  } finally {
    await server?.close();
  }
}

/** Neighbours share a process. */
function groupsOf(ranks: readonly number[], size: number): number[][] {
  const count = Math.ceil(ranks.length / size);
  return Array.from({ length: count }, (_, group) => ranks.slice(group * size, (group + 1) * size));
}

interface Supervised {
  /** The ranks of each process. */
  readonly groups: readonly (readonly number[])[];
  readonly sides: ReadonlyMap<string, readonly number[]>;
  readonly store: string;
  readonly server: TcpStoreServer | undefined;
  readonly flags: AgentsFlags;
  readonly extra: readonly string[];
}

async function superviseAgents(context: CommandContext, given: Supervised): Promise<void> {
  const { groups, sides, store, server, flags, extra } = given;
  const supervisor = new AgentSupervisor({
    groups,
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
    onLine: (group, line) => {
      context.stderr.write(`[${group}] ${line}\n`).catch(() => undefined);
    },
  });
  const stop = () => supervisor.stop();
  process.on("SIGTERM", stop);
  process.on("SIGINT", stop);
  if (flags.untilStdinEnds) process.stdin.resume().once("end", stop).once("error", stop);
  void supervisor.ready.then(() =>
    context.stdout.line(`ready: agents ${groups.flat().join(", ")}, store ${store}`).catch(() => undefined),
  );
  await supervisor.over;
  process.off("SIGTERM", stop);
  process.off("SIGINT", stop);
  process.stdin.pause();
  const { group, exitCode, how } = supervisor.ended!;
  if (exitCode === 0) return;
  await context.stderr.write(`error: the agent of ${group} ${how}\n`);
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
