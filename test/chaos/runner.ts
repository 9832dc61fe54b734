/** Throws faults into clusters, and looks at what each leaves. */
import { setTimeout as sleep } from "node:timers/promises";
import { Random } from "../kit/random.ts";
import { ask, emptyStartMs, type Programs, StartError } from "./children.ts";
import { ChaosCluster, type ClusterOptions, type ClusterTransport } from "./cluster.ts";
import { type Fault, faults } from "./faults.ts";
import { described, type Ends, judgeEnds, judgeRound, succeeded } from "./judge.ts";
import type { Outcome } from "./protocol.ts";
import type { ReportWriter } from "./report.ts";

const faultsPerCluster = 25;
const roundMs = 2500;
/** The deadline of a round that ends when what happened has been heard of, and by when that is. */
const heardRoundMs = 10_000;
const heardMs = 1000;
/** What a call may be late by: 250 ms after its deadline, and what a machine takes that runs nine processes. */
const slackMs = 250 + 2000;
const lockstepMs = 10_000;
/** Of the call that may fail: it takes milliseconds where it does not. */
const firstLockstepMs = 4000;
const registerMs = 20_000;
/** Of a registration into which a fault is thrown. */
const hinderedMs = 5000;
/** The runner's own loop came round this much late: so did everything else. */
const stallMs = 400;
/** A machine that takes this long for an empty script is too slow for an agent to be late. */
const slowMs = 1000;
/** Clusters in a row that such a machine does not start, after which nothing is gained by more. */
const mostUnstarted = 3;
/** One fault of so many happens while ranks register, if it may. */
const roundsPerRegistration = 4;

/** The longest that this process's loop was late since it was asked last. */
class StallClock {
  #longest = 0;
  #last = performance.now();
  readonly #timer = setInterval(() => {
    const now = performance.now();
    this.#longest = Math.max(this.#longest, now - this.#last - 50);
    this.#last = now;
  }, 50);

  take(): number {
    const longest = this.#longest;
    this.#longest = 0;
    return longest;
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}

const stores = ["tcp", "etcd"] as const;
const commits = ["direct", "staged"] as const;

interface RunLimits {
  readonly faults: number;
  readonly seconds: number;
  /** Only faults whose name holds this. */
  readonly only: string;
  /** Ends the run after the fault that is under way. */
  readonly signal: AbortSignal;
}

export class ChaosRunner {
  readonly #random: Random;
  readonly #programs: Programs;
  readonly #seed: number;
  readonly #writer: ReportWriter;
  readonly #stalls = new StallClock();
  #faults: readonly Fault[] = [];
  #options: readonly ClusterOptions[] = [];
  readonly #transports: readonly ClusterTransport[];
  readonly #emptyStartMs: () => Promise<number>;
  #step = 0;

  constructor(
    programs: Programs,
    seed: number,
    writer: ReportWriter,
    transports: readonly ClusterTransport[] = ["tcp", "shm"],
    howSlow = emptyStartMs,
  ) {
    this.#emptyStartMs = howSlow;
    this.#transports = transports;
    this.#programs = programs;
    this.#seed = seed;
    this.#writer = writer;
    this.#random = new Random(seed);
  }

  /** As many faults, or as many as there is time for. */
  async run({ faults: count, seconds, only, signal }: RunLimits): Promise<void> {
    const end = performance.now() + seconds * 1000;
    const goesOn = () => this.#writer.injected < count && performance.now() < end && !signal.aborted;
    this.#faults = faults.filter(({ name }) => name.includes(only));
    this.#options = this.#transports
      .flatMap((transport) =>
        stores.flatMap((store) => commits.map((commit) => ({ transport, store, commit }))),
      )
      .filter((options) => this.#faults.some(({ needs }) => needs?.(options) ?? true));
    if (this.#options.length === 0)
      throw new Error(`no fault whose name holds "${only}" can happen over ${this.#transports.join(" or ")}`);
    let unstarted = 0;
    try {
      while (goesOn() && unstarted < mostUnstarted) {
        const options = this.#random.pick(this.#options);
        const cluster = await this.#start(options);
        unstarted = cluster === undefined ? unstarted + 1 : 0;
        if (cluster !== undefined) await this.#use(cluster, options, goesOn).finally(() => cluster.kill());
      }
    } finally {
      this.#stalls.stop();
    }
    if (unstarted === mostUnstarted) console.error("this machine starts no clusters now: the run ends early");
  }

  /** `undefined` where it did not start: nothing has been done to it, so that is the machine's slowness, or a violation. */
  async #start(options: ClusterOptions): Promise<ChaosCluster | undefined> {
    this.#writer.clusterStarted();
    try {
      return await ChaosCluster.start(this.#programs, options);
    } catch (error) {
      if (await this.#isSlow(error)) this.#writer.clusterDiscarded();
      else this.#violate(`at the start, ${Object.values(options)}: ${(error as Error).message}`);
      return undefined;
    }
  }

  /** True for a process that was late on a machine that is slow with all others. */
  async #isSlow(error: unknown): Promise<boolean> {
    return error instanceof StartError && error.isLate && (await this.#emptyStartMs()) > slowMs;
  }

  async #use(cluster: ChaosCluster, options: ClusterOptions, goesOn: () => boolean): Promise<void> {
    const unready = await this.#recover(cluster);
    for (const what of unready) this.#violate(`at the start, ${Object.values(options)}: ${what}`);
    let usable = unready.length === 0;
    for (let i = 0; i < faultsPerCluster && usable && goesOn(); i++)
      usable = await this.#fault(cluster, options);
    const left = await cluster.end();
    // A cluster that was given up ends by force.
    if (usable) for (const what of left) this.#violate(`at the end, ${Object.values(options)}: ${what}`);
  }

  #violate(what: string): void {
    this.#writer.violate(what);
  }

  /** False where the cluster did not get over it. */
  async #fault(cluster: ChaosCluster, options: ClusterOptions): Promise<boolean> {
    const fault = this.#random.pick(this.#faults.filter(({ needs }) => needs?.(options) ?? true));
    const rank = this.#random.pick(cluster.ranks);
    const registering = this.#random.below(roundsPerRegistration) === 0 && fault.whileRegistering === true;
    const name = registering ? `${fault.name}, while all register` : fault.name;
    this.#stalls.take();
    const { problems, failure } = await this.#inject(cluster, fault, rank, registering);
    // A cluster that was not put right again has nothing to get over.
    const unrecovered =
      failure === undefined ? await this.#recover(cluster) : [`it does not heal: ${failure.message}`];
    problems.push(...unrecovered);
    if (problems.length === 0) this.#writer.count(name, "survived");
    else if (this.#stalls.take() > stallMs || (await this.#isSlow(failure)))
      this.#writer.count(name, "discarded");
    else {
      this.#writer.count(name, "violated");
      const where = `seed ${this.#seed}, fault ${this.#writer.injected}, ${Object.values(options)}, ${name}, rank ${rank}`;
      this.#violate(`${where}: ${problems.join("; ")}`);
    }
    return unrecovered.length === 0;
  }

  /** A round, or a registration, with the fault in its middle. */
  async #inject(
    cluster: ChaosCluster,
    fault: Fault,
    rank: number,
    registering: boolean,
  ): Promise<{ readonly problems: string[]; readonly failure?: Error }> {
    this.#step += 1;
    const step = this.#step;
    const lateMs = slackMs + (fault.lateMs ?? 0);
    const calls = registering
      ? cluster.registerAll(hinderedMs)
      : this.#callAll(cluster, fault.isHeard ? heardRoundMs : roundMs, fault.absent ? rank : undefined);
    await sleep(this.#random.below(registering ? 300 : 30));
    const heal = await fault.inject(cluster, rank, this.#random);
    const outcomes = await calls;
    const problems = registering
      ? // It asks for the agent, leaves its batch, and registers pair and batch, each with that deadline.
        judgeEnds(outcomes, 4 * hinderedMs + lateMs)
      : judgeRound(outcomes, {
          commit: cluster.options.commit,
          step,
          limitMs: (fault.isHeard ? heardMs : roundMs) + lateMs,
          culprit: fault.isBlamed ? rank : undefined,
          isForged: fault.forges,
          isCorrupted: fault.corrupts,
        });
    try {
      await heal();
    } catch (error) {
      return { problems, failure: error as Error };
    }
    return { problems };
  }

  #callAll(cluster: ChaosCluster, timeoutMs: number, absent?: number): Promise<(Outcome | undefined)[]> {
    const step = this.#step;
    const calls = cluster.ranks.map(async (rank) =>
      rank === absent ? undefined : ask(cluster.hosts[rank]!, { act: "call", step, timeoutMs }),
    );
    return Promise.all(calls);
  }

  /** Two lockstep calls, the second after all have registered anew if the first failed: it must succeed. */
  async #recover(cluster: ChaosCluster): Promise<string[]> {
    await sleep(300);
    const first = await this.#lockstep(cluster, firstLockstepMs);
    if (succeeded(first)) return [];
    let registered = await cluster.registerAll(registerMs);
    if (!succeeded(registered)) registered = await cluster.registerAll(registerMs);
    if (!succeeded(registered)) return [`ranks cannot register anew: ${described(registered)}`];
    const second = await this.#lockstep(cluster, lockstepMs);
    if (succeeded(second)) return [];
    return [`the second lockstep call fails: ${described(second)}, after ${described(first)}`];
  }

  async #lockstep(cluster: ChaosCluster, timeoutMs: number): Promise<Ends> {
    this.#step += 1;
    const outcomes = await this.#callAll(cluster, timeoutMs);
    const { commit } = cluster.options;
    const wrong = judgeRound(outcomes, { commit, step: this.#step, limitMs: timeoutMs + slackMs });
    const isWrong = succeeded(outcomes) && wrong.length > 0;
    return isWrong ? outcomes.map((each) => each && { ...each, code: "wrong bytes" }) : outcomes;
  }
}
