/** One schedule from its seed to its end: a faulty time, what has to hold when all is well again, and what may be left. */
import type { TensorBusError } from "../../../src/errors.ts";
import { usePlatform } from "../platform/current.ts";
import type { Call } from "../world/client.ts";
import { Cluster } from "../world/cluster.ts";
import { brief } from "../world/trace.ts";
import { endsCalls, saysAll, tellsEnds } from "./fault-kinds.ts";
import { inject } from "./faults.ts";
import { Job } from "./job.ts";
import { isBefore, isKept, logEntries, mostRounds } from "./left-keys.ts";
import type { Registration } from "./registration.ts";
import { type BatchPlan, type Launch, makeScenario, type Scenario, type SideName } from "./scenario.ts";
import { roundOf, type Violation } from "./transfer-call.ts";

export interface Report {
  readonly seed: number;
  readonly violations: readonly Violation[];
  /** Of the trace: two runs of one seed have the same. */
  readonly digest: string;
  readonly events: number;
  readonly virtualMs: number;
  readonly rounds: number;
  readonly trace: readonly string[];
}

/** Rounds more than there are ranks and rounds that failed of which something may stand: those that are being removed. */
const spareRounds = 4;
const startMs = 20_000;
const joinMs = 15_000;
/** How long calls in opposite directions may take, twice. */
const opposedMs = 4000;
/** What a store that was lost, found again, and what depends on it may take. */
const settleMs = 10_000;

export async function runSchedule(seed: number, { trace = false } = {}): Promise<Report> {
  const scenario = makeScenario(seed);
  let job: Job | undefined;
  let rounds = 0;
  const cluster = new Cluster(scenario, trace, (agent, event) => {
    if (event.kind === "roundCompleted") rounds += 1;
    job?.ledger.told(agent, event);
  });
  job = new Job(cluster);
  const { ledger } = job;
  const onRejection = (error: unknown) =>
    ledger.violate("nothing is thrown away", String((error as Error)?.stack ?? error));
  process.on("unhandledRejection", onRejection);
  try {
    cluster.trace.say("seed", String(seed), scenario);
    await new Schedule(scenario, cluster, job).run();
  } catch (error) {
    if (!(error instanceof Stuck)) ledger.violate("nothing throws", (error as Error).stack ?? String(error));
  } finally {
    process.off("unhandledRejection", onRejection);
    usePlatform(undefined);
  }
  return {
    seed,
    violations: ledger.violations,
    digest: cluster.trace.digest,
    events: cluster.scheduler.taken,
    virtualMs: cluster.scheduler.now,
    rounds,
    trace: cluster.trace.lines,
  };
}

/** What comes after would only repeat it. */
class Stuck extends Error {}

class Schedule {
  readonly #scenario: Scenario;
  readonly #cluster: Cluster;
  readonly #job: Job;
  /** Nothing happens any more for which no moment has come. */
  #isHealed = false;

  constructor(scenario: Scenario, cluster: Cluster, job: Job) {
    this.#scenario = scenario;
    this.#cluster = cluster;
    this.#job = job;
  }

  get #isColocated(): boolean {
    const { A, B } = this.#cluster.launch.sides;
    return A.some((rank) => B.includes(rank));
  }

  async run(): Promise<void> {
    const { early } = this.#scenario;
    for (const agent of this.#cluster.agents) agent.start();
    await this.#ready();
    this.#job.begin();
    if (early) for (const registration of this.#job.registrations) void this.#join(registration);
    else await this.#joinAll();
    await this.#faultyTime();
    await this.#heal();
    for (const plan of this.#scenario.batches) await this.#rejoin(plan);
    await this.#lockstep(3);
    if (this.#scenario.opposed) await this.#oppose();
    if (this.#scenario.misfit) await this.#misfit();
    if (this.#scenario.broken) await this.#breakGpu();
    if (this.#scenario.again !== undefined) await this.#launchAgain(this.#scenario.again);
    if (this.#scenario.orderly) await this.#closeInOrder();
    await this.#end();
  }

  async #ready(): Promise<void> {
    const { agents } = this.#cluster;
    const isReady = await this.#cluster.until(() => agents.every(({ core }) => core !== undefined), startMs);
    this.#must(isReady, "agents start", () => "an agent was not ready in time");
  }

  /** All clients, all batches, at once. */
  async #joinAll(): Promise<void> {
    const joined = this.#job.registrations.map((registration) => this.#join(registration));
    const errors = await this.#through(Promise.all(joined), "registering");
    const failed = errors.find((error) => error !== undefined);
    this.#must(failed === undefined, "registering at the first try works", () => brief(failed));
  }

  async #faultyTime(): Promise<void> {
    const { steps, faults, callTimeoutMs } = this.#scenario;
    const { scheduler, store } = this.#cluster;
    for (const step of steps) scheduler.afterFor(undefined, step.startsAt, () => this.#job.begins(step));
    for (const fault of faults) {
      const happen = () => {
        if (this.#isHealed) return;
        const undo = inject(fault, this.#cluster, this.#job);
        if (undo !== undefined) scheduler.afterFor(undefined, fault.lastsMs, undo);
      };
      scheduler.afterFor(undefined, fault.at, () => {
        if (fault.upon === undefined) happen();
        else store.upon(fault.upon, happen);
      });
    }
    const last = Math.max(0, ...steps.map(({ startsAt }) => startsAt), ...faults.map(({ at }) => at));
    await this.#cluster.pass(last + 3 * callTimeoutMs);
  }

  /** All faults are over, whoever was killed is there again, and what they brought about has come to its end. */
  async #heal(): Promise<void> {
    const { peerTimeoutMs, storeSilenceMs, callTimeoutMs } = this.#scenario;
    const { store, network, agents, clients, trace } = this.#cluster;
    await this.#cluster.pass(Math.max(0, ...this.#scenario.faults.map(({ at, lastsMs }) => at + lastsMs)));
    this.#isHealed = true;
    trace.say("TEST", "all faults are over");
    store.slowness = 1;
    if (store.state !== "up") store.start(true);
    network.mendAll();
    for (const agent of agents) {
      for (const client of agent.stores) client.mend();
      agent.goOn();
      if (!agent.isAlive) agent.start();
    }
    for (const { rank, side, isAlive } of clients) if (!isAlive) this.#job.replaceClient(rank, side);
    await this.#ready();
    await this.#cluster.pass(2 * peerTimeoutMs + storeSilenceMs + settleMs + callTimeoutMs);
    await this.#cluster.until(() => this.#job.pending.length === 0, joinMs);
    this.#job.ledger.overdue(this.#job.pending);
    this.#must(
      this.#job.pending.length === 0,
      "every call ends",
      () => "calls of the faulty time are pending",
    );
  }

  /** Every rank has heard of an end; a batch that has ended is registered anew, at the first try. */
  async #rejoin(plan: BatchPlan): Promise<void> {
    const mine = this.#job.registrations.filter((registration) => registration.plan === plan);
    const standing = await this.#through(
      Promise.all(mine.map((registration) => this.#job.stands(registration))),
      "asking for batches",
    );
    const stand = mine.filter((_, index) => standing[index]);
    const ended = mine.filter((_, index) => !standing[index]);
    const name = ({ client }: Registration) => client.name;
    const isOne = new Set(stand.map(({ number }) => number)).size <= 1;
    this.#job.ledger.require(
      isOne && (stand.length === 0 || ended.length === 0),
      "every end is heard",
      () => `${plan.id} stands for ${stand.map(name)}, and not for ${ended.map(name)}`,
    );
    if (ended.length === 0) return;
    for (const registration of stand) this.#job.cleanUp(registration);
    await this.#cluster.pass(1000);
    this.#cluster.trace.say("TEST", `${plan.id} is registered anew`);
    const errors = await this.#through(Promise.all(mine.map((each) => this.#join(each))), "registering anew");
    const failed = errors.find((error) => error !== undefined);
    this.#must(
      failed === undefined,
      "registering anew works at the first try",
      () => `${plan.id}: ${brief(failed)}`,
    );
  }

  /** The second lockstep call at the latest succeeds on every rank. */
  async #lockstep(times: number): Promise<void> {
    const { callTimeoutMs } = this.#scenario;
    for (const plan of this.#cluster.launch.batches) {
      for (let attempt = 1; attempt <= times; attempt++) {
        const version = this.#job.nextVersion();
        // A lone source that shows itself, and finds its version outdated, leaves its signal up until its next call.
        if (!this.#isColocated || !this.#scenario.versions) await this.#requireSilence(plan);
        this.#cluster.trace.say("TEST", `lockstep call ${attempt} of ${plan.id}`);
        const calls = this.#job.registrations
          .filter((registration) => registration.plan === plan)
          .map((registration) => this.#job.transfer(registration, "A", callTimeoutMs, version));
        const isOver = await this.#cluster.until(
          () => calls.every((call) => call?.ended !== undefined),
          callTimeoutMs + 5000,
        );
        this.#job.ledger.overdue(this.#job.pending);
        this.#must(isOver, "every call ends", () => `lockstep call ${attempt} of ${plan.id}`);
        const failed = calls.filter((call): call is Call => call?.error !== undefined);
        if (attempt > 1) {
          this.#must(failed.length === 0, "the second lockstep call succeeds", () => {
            const shown = failed.map(({ client, error }) => `${client.name}: ${brief(error)}`);
            return `call ${attempt} of ${plan.id}: ${shown.join("; ")}`;
          });
          const rounds = calls.map((call) => roundOf(call!));
          this.#must(new Set(rounds).size === 1, "a lockstep call is one round", () => `rounds ${rounds}`);
        }
        await this.#cluster.pass(1000);
      }
    }
  }

  /** While nobody calls, no rank's signal says that a round is ready: it moves on with the log. */
  async #requireSilence(plan: BatchPlan): Promise<void> {
    const mine = this.#job.registrations.filter((each) => each.plan === plan);
    const ready = await this.#through(
      Promise.all(mine.map((each) => this.#job.isReady(each))),
      "asking for signals",
    );
    const said = mine.filter((_, index) => ready[index]).map(({ client }) => client.name);
    this.#job.ledger.require(said.length === 0, "the signal speaks of the next round", () => {
      return `${plan.id}: ready for ${said} while nobody calls`;
    });
  }

  /**
   * Ranks that call in opposite directions learn of each other at once, and not at their deadlines; what comes then succeeds as
   * after any other failure.
   */
  async #oppose(): Promise<void> {
    const { random, trace, launch } = this.#cluster;
    for (const plan of launch.batches) {
      trace.say("TEST", `calls of ${plan.id} in opposite directions`);
      const version = this.#job.nextVersion();
      const mine = this.#job.registrations.filter((registration) => registration.plan === plan);
      const odd = random.integer(0, mine.length - 1);
      const ways = new Map<number, SideName>();
      const calls = mine.map((registration, place) => {
        const way =
          place === odd ? "B" : place === (odd + 1) % mine.length ? "A" : random.pick<SideName>(["A", "B"]);
        ways.set(registration.client.rank, way);
        return this.#job.transfer(registration, way, opposedMs, version)!;
      });
      await this.#cluster.until(() => calls.every(({ ended }) => ended !== undefined), opposedMs + 5000);
      for (const { client, error, began, ended } of calls) {
        // One that does not deal with any of those who call the other way may have what it asked for.
        if (error === undefined && ended !== undefined && plan.commit === "direct") continue;
        const { rank } = error?.details ?? {};
        const isTold = error?.code === "TB_BUSY" && ways.get(rank as number) !== ways.get(client.rank);
        this.#must(isTold || error?.code === "TB_CANCELLED", "opposite directions are told", () => {
          return `${client.name}, from ${ways.get(client.rank)}: ${brief(error)}`;
        });
        const tookMs = (ended ?? Number.POSITIVE_INFINITY) - began;
        this.#must(tookMs < opposedMs / 2, "opposite directions are told", () => {
          return `${client.name} was told after ${tookMs.toFixed(0)} ms`;
        });
      }
      const isNamed = calls.some(({ error }) => error?.code === "TB_BUSY");
      this.#must(isNamed, "opposite directions are told", () => `${plan.id}: nobody was told why`);
      await this.#cluster.pass(1000);
    }
    await this.#lockstep(2);
  }

  /** What one rank's registration lacks is every rank's error at once, with that rank; without it, the next attempt holds. */
  async #misfit(): Promise<void> {
    const { random, trace, launch } = this.#cluster;
    const plan = random.pick(launch.batches);
    const mine = this.#job.registrations.filter((registration) => registration.plan === plan);
    for (const registration of mine) this.#job.cleanUp(registration);
    await this.#cluster.pass(1000);
    const odd = random.pick(mine);
    trace.say("TEST", `${odd.client.name} registers ${plan.id} with too little memory`);
    const calls = await this.#through(
      Promise.all(
        mine.map((each) => this.#job.register(each, joinMs, each === odd ? each.misfit : each.body)),
      ),
      "registering what does not fit",
    );
    for (const { client, error, began, ended } of calls) {
      const isTold = error?.code === "TB_REGION" && error.details["rank"] === odd.client.rank;
      this.#must(isTold && ended! - began < joinMs / 5, "what one rank lacks is every rank's error", () => {
        return `${client.name} was told after ${(ended! - began).toFixed(0)} ms: ${brief(error)}`;
      });
    }
    await this.#cluster.pass(1000);
    await this.#rejoin(plan);
    await this.#lockstep(2);
  }

  /** A GPU fails for good: whoever calls is told at once, before that was known to all or after, and goes on once its agent was started anew. */
  async #breakGpu(): Promise<void> {
    const { random, trace, launch, scheduler } = this.#cluster;
    const plan = random.pick(launch.batches);
    const mine = this.#job.registrations.filter((registration) => registration.plan === plan);
    const odd = random.pick(mine).client;
    trace.say("TEST", `the GPU of rank ${odd.rank} fails`);
    odd.agent.failForGood();
    const version = this.#job.nextVersion();
    const calls: Call[] = [];
    for (const registration of mine) {
      // A round of one rank has nothing on a GPU to wait for before both of its sides are there.
      const at = registration.client.rank === odd.rank ? 0 : random.integer(0, 300);
      scheduler.afterFor(undefined, at, () => {
        const call = this.#job.transfer(registration, "A", opposedMs, version);
        if (call !== undefined) calls.push(call);
      });
    }
    const isOver = () => calls.length === mine.length && calls.every(({ ended }) => ended !== undefined);
    await this.#cluster.until(isOver, 2 * opposedMs);
    for (const { client, error, began, ended } of calls) {
      const tookMs = (ended ?? Number.POSITIVE_INFINITY) - Math.max(began, calls[0]!.began + 300);
      const isTold = error === undefined || error.code === "TB_CUDA" || error.code === "TB_PEER_LOST";
      this.#must(isTold && tookMs < opposedMs / 2, "a GPU that has failed ends its batch", () => {
        return `${client.name} was told after ${tookMs.toFixed(0)} ms: ${brief(error)}`;
      });
    }
    this.#job.killRank(odd.rank);
    await this.#cluster.pass(1000);
    odd.agent.start();
    for (const { rank, side } of this.#cluster.clients)
      if (rank === odd.rank) this.#job.replaceClient(rank, side);
    await this.#ready();
    await this.#cluster.pass(settleMs);
    for (const each of launch.batches) await this.#rejoin(each);
    await this.#lockstep(2);
  }

  /** Records of the dead bind nobody: everything is killed at once, and comes back in another way under the same names. */
  async #launchAgain(launch: Launch): Promise<void> {
    const { agents, clients, trace, random, scheduler } = this.#cluster;
    trace.say("TEST", "all processes are killed, and the job is launched in another way", launch);
    for (const client of clients) client.kill();
    for (const agent of agents) {
      scheduler.afterFor(undefined, random.integer(0, 20), () => agent.kill(random.chance(20)));
    }
    await this.#cluster.pass(20 + random.pick([1, 100, 10_000]));
    this.#cluster.relaunch(launch);
    for (const agent of this.#cluster.agents) agent.start();
    await this.#ready();
    this.#job.begin();
    await this.#joinAll();
    await this.#lockstep(3);
  }

  /**
   * Each client makes its last call of each batch in its own time, and closes the batch as soon as that call is done, or its agent
   * ends in order when all calls of its rank are: no other call fails for it, be it that it comes later.
   */
  async #closeInOrder(): Promise<void> {
    const { callTimeoutMs } = this.#scenario;
    const { random, trace, scheduler, agents } = this.#cluster;
    trace.say("TEST", "each client closes when its last call is done");
    const open = new Map<Registration, Call | undefined>();
    const versions = new Map(this.#cluster.launch.batches.map((plan) => [plan, this.#job.nextVersion()]));
    for (const registration of this.#job.registrations) {
      open.set(registration, undefined);
      scheduler.afterFor(undefined, random.integer(0, callTimeoutMs / 2), () => {
        const version = versions.get(registration.plan);
        open.set(registration, this.#job.transfer(registration, "A", callTimeoutMs, version));
      });
    }
    const leaving = new Set(agents.filter(() => random.chance(30)));
    const rule = "a close in order ends nobody's round";
    const step = () => {
      for (const [registration, call] of open) {
        if (call?.ended === undefined) continue;
        const { agent, name } = registration.client;
        this.#job.ledger.require(call.error === undefined, rule, () => `${name}: ${brief(call.error)}`);
        open.delete(registration);
        const isLast = [...open.keys()].every(({ client }) => client.agent !== agent);
        if (!leaving.has(agent)) this.#job.cleanUp(registration);
        else if (isLast) scheduler.afterFor(agent.process, 0, () => void agent.close());
      }
      return open.size === 0;
    };
    const isOver = await this.#cluster.until(step, 2 * callTimeoutMs + 5000);
    this.#must(isOver, "every call ends", () => "a last call");
  }

  /** What all have let go of is gone. */
  async #end(): Promise<void> {
    const { store, network, agents } = this.#cluster;
    const { ledger } = this.#job;
    // What is removed with a registration would hide that nothing was removed while it lasted. Rounds that failed are removed when
    // the next one is completed.
    const rounds = mostRounds(store.entries.keys());
    const most = this.#scenario.ranks.length + spareRounds + logEntries(store.entries.keys());
    ledger.require(
      rounds <= most,
      "nothing leaks",
      () => `of ${rounds} rounds something stands, not of ${most}`,
    );
    for (const registration of this.#job.registrations) {
      ledger.checkSettled(registration);
      const { number, plan } = registration;
      const before = [...store.entries.keys()].filter((key) => isBefore(key, plan.id, number));
      // A job that was launched in another way may not have known of all that stood before.
      ledger.require(before.length === 0 || this.#scenario.again !== undefined, "nothing leaks", () => {
        return `of registrations before ${plan.id} #${number}: ${before.slice(0, 6).join(", ")}`;
      });
      this.#job.cleanUp(registration);
    }
    await this.#cluster.until(() => this.#job.pending.length === 0, 10_000);
    ledger.overdue(this.#job.pending);
    await this.#cluster.pass(3000);
    const { faults, peerTimeoutMs, storeMs } = this.#scenario;
    const isPlain = faults.every(({ kind }) => tellsEnds.has(kind));
    const { ranks, sides, versions } = this.#scenario;
    const isColocated = ranks.length < sides.A.length + sides.B.length;
    if (isPlain && !isColocated && !versions) ledger.checkAbsences();
    const isQuick = storeMs[1] < 10 && faults.every(({ kind }) => endsCalls.has(kind));
    if (storeMs[1] < 10 && faults.every(({ kind }) => tellsEnds.has(kind) || endsCalls.has(kind)))
      ledger.checkFresh();
    // A newer version ends the round of those who wait with an older one, and a GPU its batch.
    if (isQuick && !versions && !this.#scenario.broken) ledger.checkReasons();
    if (!isColocated && !versions && isQuick) ledger.checkBlamed();
    if (versions && isQuick) ledger.checkStale();
    if (storeMs[1] < 10 && faults.every(({ kind }) => saysAll.has(kind)))
      ledger.checkHeard(600 + 20 * storeMs[1]);
    if (isPlain) ledger.checkEnds(1000 + 1.3 * peerTimeoutMs + 4 * storeMs[1]);
    for (const { name, memory } of agents) {
      ledger.require(memory.size === 0, "nothing leaks", () => `${name} holds ${memory.size} regions`);
    }
    let closed = 0;
    for (const agent of agents) {
      this.#cluster.scheduler.afterFor(agent.process, 0, () => {
        agent.close().then(
          () => closed++,
          (error) => ledger.violate("agents close", String(error)),
        );
      });
    }
    const areClosed = await this.#cluster.until(() => closed === agents.length, 30_000);
    ledger.require(areClosed, "agents close", () => "an agent did not close in time");
    await this.#cluster.pass(5000);
    const kept = [...store.entries.keys()].filter((key) => !isKept(key));
    // Nobody takes back what a job has left that was killed and has not come back.
    const isWhole = this.#scenario.again === undefined;
    ledger.require(
      kept.length === 0 || !isWhole,
      "nothing leaks",
      () => `in the store: ${kept.slice(0, 6).join(", ")}`,
    );
    ledger.require(store.waiting === 0, "nothing leaks", () => `${store.waiting} waits in the store`);
    for (const { name, process } of agents) {
      const timers = this.#cluster.scheduler.waitingFor(process);
      ledger.require(timers === 0, "nothing leaks", () => `${timers} timers of ${name}`);
    }
    ledger.require(network.connections === 0, "nothing leaks", () => `${network.connections} connections`);
  }

  async #join(registration: Registration): Promise<TensorBusError | undefined> {
    return this.#job.join(registration, joinMs);
  }

  /** What clients do, while time goes on. */
  async #through<T>(work: Promise<T>, what: string): Promise<T> {
    let outcome: { readonly value: T } | { readonly error: unknown } | undefined;
    work.then(
      (value) => {
        outcome = { value };
      },
      (error: unknown) => {
        outcome = { error };
      },
    );
    await this.#cluster.until(() => outcome !== undefined, 3 * joinMs);
    this.#must(outcome !== undefined, "every call ends", () => what);
    if ("error" in outcome!) throw outcome.error;
    return outcome!.value;
  }

  #must(holds: boolean, rule: string, what: () => string): void {
    if (holds) return;
    this.#job.ledger.violate(rule, what());
    throw new Stuck(rule);
  }
}
