import { type ChildProcess, fork } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { TensorBusError } from "../../errors.ts";
import type { Plan } from "../../plan/index.ts";
import { serveTcpStore, type TcpStoreServer } from "../../store/tcp-server.ts";
import type { DemoJob, DemoMessage, DemoOrder, DemoStep, StepReport } from "./messages.ts";

interface DemoRun {
  /** Names, shapes and layouts; the agents plan for themselves. */
  readonly plan: Plan;
  readonly checkpoint: string;
  readonly sourceRanks: readonly number[];
  readonly targetRanks: readonly number[];
  readonly timeoutMs: number;
  /** The script whose commands `agent` and `demo-rank` run the two processes of a rank. */
  readonly entry: string;
  /** Bytes of the step under way, over all ranks that take part in it. */
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

/** How long processes have to end by themselves before they are killed. */
const graceMs = 5_000;

interface RankProcesses {
  readonly rank: number;
  readonly role: DemoJob["role"];
  readonly agent: ChildProcess;
  readonly client: ChildProcess;
}

/**
 * Both jobs on this machine: for every rank an agent and a client, each a process of its own, and the store that they share. The
 * first failure is the failure of every step, and names its rank.
 */
export class DemoWorld implements AsyncDisposable {
  readonly #run: DemoRun;
  readonly #folder: string;
  readonly #store: TcpStoreServer;
  readonly #ranks: readonly RankProcesses[];
  readonly #failure: Promise<never>;
  #fail: (error: TensorBusError) => void = () => {};
  #ending = false;

  private constructor(run: DemoRun, folder: string, store: TcpStoreServer) {
    this.#run = run;
    this.#folder = folder;
    this.#store = store;
    this.#failure = new Promise<never>((_, reject) => {
      this.#fail = reject;
    });
    this.#failure.catch(() => {});
    const roles = [
      ...run.sourceRanks.map((rank) => ({ rank, role: "source" as const })),
      ...run.targetRanks.map((rank) => ({ rank, role: "target" as const })),
    ];
    // Only the processes of this run can talk to each other.
    const secret = randomBytes(32).toString("hex");
    this.#ranks = roles.map(({ rank, role }) => this.#start(rank, role, secret));
    run.signal?.addEventListener("abort", () => this.#cancel(), { once: true });
    if (run.signal?.aborted) this.#cancel();
  }

  static async start(run: DemoRun): Promise<DemoWorld> {
    const folder = await mkdtemp(join(tmpdir(), "tensorbus-demo-"));
    try {
      await writeFile(join(folder, "plan"), run.plan.bytes, { mode: 0o600 });
      return new DemoWorld(run, folder, await serveTcpStore({ host: "127.0.0.1", port: 0 }));
    } catch (error) {
      await rm(folder, { recursive: true, force: true });
      throw error;
    }
  }

  /** The processes of each rank. */
  get pids(): {
    readonly agents: ReadonlyMap<number, number>;
    readonly clients: ReadonlyMap<number, number>;
  } {
    return {
      agents: new Map(this.#ranks.map(({ rank, agent }) => [rank, agent.pid!])),
      clients: new Map(this.#ranks.map(({ rank, client }) => [rank, client.pid!])),
    };
  }

  /** Has every rank that has a part in a step do it, at once; what each of them reports. */
  async step(step: DemoStep, round = 0): Promise<readonly StepReport[]> {
    const ranks = this.#ranks.filter(({ role }) => takesPart(role, step));
    const progress = new Map<number, { done: number; total: number }>();
    const counts = (role: RankProcesses["role"]) => step !== "move" || role === "target";
    const counted = ranks.filter(({ role }) => counts(role)).length;
    const reports = ranks.map(({ rank, role, client }) => {
      const onProgress = (done: number, total: number) => {
        // A byte that moves counts once, where it arrives.
        if (!counts(role)) return;
        progress.set(rank, { done, total });
        if (progress.size === counted) this.#report([...progress.values()]);
      };
      return this.#order(client, { kind: "step", step, round }, onProgress);
    });
    return Promise.race([Promise.all(reports), this.#failure]);
  }

  /** Ends all processes, and removes what they had in common. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#ending = true;
    const clients = this.#ranks.map(({ client }) => client);
    for (const client of clients) if (client.connected) client.send({ kind: "end" }, () => undefined);
    await this.#ended(clients);
    const agents = this.#ranks.map(({ agent }) => agent);
    for (const agent of agents) agent.kill("SIGTERM");
    await this.#ended(agents);
    await this.#store.close();
    await rm(this.#folder, { recursive: true, force: true });
  }

  #start(rank: number, role: DemoJob["role"], secret: string): RankProcesses {
    const { entry, checkpoint, timeoutMs, sourceRanks, targetRanks } = this.#run;
    const env = {
      ...process.env,
      AGENT_RANK: String(rank),
      TENSOR_BUS_STORE: `tcp://127.0.0.1:${this.#store.port}`,
      TENSOR_BUS_WORLD_SIZE: String(Math.max(...sourceRanks, ...targetRanks) + 1),
      TENSOR_BUS_COMMAND_QUEUE_PATH: join(this.#folder, `rank-${rank}`, "queue"),
      TENSOR_BUS_STATE_PATH: join(this.#folder, `rank-${rank}`, "state"),
      TENSOR_BUS_SECRET: secret,
    };
    const options = { stdio: ["ignore", "ignore", "inherit", "ipc"] as const, env };
    const agentArguments = ["agent", "--no-serve", "--log", "error", "--drain", "1"];
    const agent = fork(entry, agentArguments, { ...options, stdio: [...options.stdio] });
    const client = fork(entry, ["demo-rank"], { ...options, stdio: [...options.stdio] });
    this.#watch(agent, rank, "agent", "TB_AGENT_LOST");
    this.#watch(client, rank, "client", "TB_CLIENT_LOST");
    const planPath = join(this.#folder, "plan");
    const job: DemoJob = { kind: "job", rank, role, planPath, checkpoint, agentPid: agent.pid!, timeoutMs };
    client.send(job, () => undefined);
    return { rank, role, agent, client };
  }

  #watch(child: ChildProcess, rank: number, what: string, code: "TB_AGENT_LOST" | "TB_CLIENT_LOST"): void {
    const lost = (how: string) => {
      if (this.#ending) return;
      this.#fail(new TensorBusError(code, `the ${what} of rank ${rank} ${how}`, { details: { rank } }));
    };
    child.once("error", (error) => lost(`did not start: ${error.message}`));
    child.once("exit", (exit, signal) =>
      lost(signal === null ? `ended with exit code ${exit}` : `was killed by ${signal}`),
    );
  }

  #cancel(): void {
    this.#fail(new TensorBusError("TB_CANCELLED", "the demo was cancelled"));
  }

  #order(
    client: ChildProcess,
    order: DemoOrder,
    onProgress: (done: number, total: number) => void,
  ): Promise<StepReport> {
    return new Promise((resolve, reject) => {
      const hear = (message: DemoMessage) => {
        if (message.kind === "progress") {
          onProgress(message.done, message.total);
          return;
        }
        client.off("message", hear);
        if (message.kind === "done") {
          resolve(message.report);
          return;
        }
        const { code, rank, message: text } = message.failure;
        const failure = new TensorBusError(code, `rank ${rank}: ${text}`, { details: { rank } });
        // The rank that fails first tells why; what others meet in consequence comes later.
        this.#fail(failure);
        reject(failure);
      };
      client.on("message", hear);
      client.send(order, () => undefined);
    });
  }

  #report(parts: readonly { readonly done: number; readonly total: number }[]): void {
    const sum = (of: "done" | "total") => parts.reduce((all, part) => all + part[of], 0);
    this.#run.onProgress?.(sum("done"), sum("total"));
  }

  async #ended(children: readonly ChildProcess[]): Promise<void> {
    const kill = setTimeout(() => {
      for (const child of children) child.kill("SIGKILL");
    }, graceMs);
    await Promise.all(children.map(async (child) => hasEnded(child) || once(child, "exit")));
    clearTimeout(kill);
  }
}

function takesPart(role: DemoJob["role"], step: DemoStep): boolean {
  if (step === "train") return role === "source";
  return step === "verify" ? role === "target" : true;
}

function hasEnded({ exitCode, signalCode, pid }: ChildProcess): boolean {
  return exitCode !== null || signalCode !== null || pid === undefined;
}
