/**
 * What is known of every call of a schedule, and what must hold of them: the promises of `docs/client.md`, as far as clients
 * can see them.
 */
import type { AgentEvent } from "../../../src/bus/pair/events.ts";
import type { TensorBusError } from "../../../src/errors.ts";
import type { SimulatedAgent } from "../world/agent.ts";
import type { Call } from "../world/client.ts";
import type { Cluster } from "../world/cluster.ts";
import { brief } from "../world/trace.ts";
import type { Registration } from "./registration.ts";
import { ranksOf } from "./scenario.ts";
import { checkSent } from "./sent-memory.ts";
import {
  areSame,
  endsAnyCall,
  isOpposed,
  isUnknown,
  type Outcomes,
  overlaps,
  roundOf,
  type Standing,
  surelyPostedMs,
  type TransferCall,
  type Violation,
} from "./transfer-call.ts";

/** Deadlines that pass at the same time. */
const sameTimeMs = 20;
/** What a call may take beyond its deadline. */
const graceMs = 250;
/** Ways to and from the agent, and timers that end together. */
const slackMs = 10;

export class Ledger {
  readonly violations: Violation[] = [];
  readonly #cluster: Cluster;
  readonly #transfers = new Map<number, TransferCall>();
  readonly #staged = new Map<string, Outcomes>();
  /** When agents were stopped: from, to. */
  /** By batch, side and round, when it failed first, as an agent has told. */
  readonly #failed = new Map<string, number>();
  readonly #stops: { readonly agent: SimulatedAgent; readonly from: number; to: number }[] = [];
  /** By batch and number, the agents that have registered it: which of them, and when it ended there. */
  readonly #standing = new Map<string, Map<SimulatedAgent, Standing>>();
  /** By rank, batch and number, the life of the store in which it was registered last. */
  readonly #lives = new Map<string, number>();
  #stamps = 0;

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
  }

  violate(rule: string, what: string): void {
    this.violations.push({ rule, what });
    this.#cluster.trace.say("VIOLATION", `${rule}: ${what}`);
  }

  require(holds: boolean, rule: string, what: () => string): void {
    if (!holds) this.violate(rule, what());
  }

  nextStamp(): number {
    return ++this.#stamps;
  }

  add(transfer: TransferCall): void {
    this.#transfers.set(transfer.stamp, transfer);
  }

  transferOf(call: Call): TransferCall | undefined {
    return [...this.#transfers.values()].find((each) => each.call === call);
  }

  stopped(agent: SimulatedAgent): () => void {
    const stop = { agent, from: this.#cluster.scheduler.now, to: Number.POSITIVE_INFINITY };
    this.#stops.push(stop);
    return () => {
      stop.to = this.#cluster.scheduler.now;
    };
  }

  /** A registration's own name: a store that forgets counts from 1 again. */
  nameOf(agent: SimulatedAgent, batch: unknown, number: number): string {
    const name = `${String(batch)} #${number}`;
    const life = this.#lives.get(`${agent.rank} ${name}`) ?? 0;
    return life === 0 ? name : `${name} of the store's life ${life}`;
  }

  /** Any call has been answered. */
  ended(call: Call): void {
    this.#checkTime(call);
    const { error, client } = call;
    if (error !== undefined) this.#checkBlame(call, error);
    this.require(error?.code !== "TB_SYSTEM", "errors are typed", () => {
      return `${client.name} call ${call.number}: ${error!.message}\n${error!.details["stack"]}`;
    });
  }

  /** A call that was made while another one was under way. */
  secondEnded({ client, number, error }: Call, first: Call): void {
    const wasUnderWay = first.ended === undefined;
    this.require(error !== undefined || !wasUnderWay, "a round has one call a rank and side", () => {
      return `${client.name} call ${number} was done while call ${first.number} was under way`;
    });
  }

  transferEnded(transfer: TransferCall): void {
    const { call, registration } = transfer;
    this.ended(call);
    const { error } = call;
    const round = roundOf(call);
    const isTarget = transfer.from !== registration.side;
    if (error === undefined) {
      if (isTarget) registration.inDoubt = false;
      if (isTarget) this.#checkDelivered(transfer, round!);
      // What was in doubt may have been copied as soon as the round was over.
      else if (!transfer.hadDoubt) this.#checkSame(transfer, registration.values);
      this.#record(transfer, round!, true);
      return;
    }
    if (round !== undefined && error.code !== "TB_IN_DOUBT") this.#record(transfer, round, false);
    const { torn } = error.details;
    const isInDoubt = error.code === "TB_IN_DOUBT" || isUnknown(error.code);
    const mayDiffer = registration.plan.commit === "direct" ? torn !== false : isInDoubt || transfer.hadDoubt;
    if (isInDoubt && isTarget) registration.inDoubt = true;
    if (mayDiffer || isInDoubt) registration.settled = undefined;
    else this.#checkSame(transfer, registration.values);
  }

  told(agent: SimulatedAgent, event: AgentEvent): void {
    if (event.kind === "fault" && event.error.code === "TB_SYSTEM") {
      this.violate("errors are typed", `${agent.name}: ${event.error.message}`);
    }
    if (event.kind === "fault" && event.error.code === "TB_BUSY") {
      this.violate("nothing leaks", `${agent.name} let go of what is in use: ${event.error.message}`);
    }
    if (event.kind === "roundFailed" && event.error.code !== "TB_IN_DOUBT") {
      const key = `${this.nameOf(agent, event.batch, event.number)} from ${event.from}, round ${event.round}`;
      this.#failed.set(
        key,
        Math.min(this.#failed.get(key) ?? Number.POSITIVE_INFINITY, this.#cluster.scheduler.now),
      );
    }
    checkSent(this, this.#cluster.scheduler.now, agent, event, this.#transfers.values());
    if (event.kind === "batchRegistered") this.#registered(agent, event);
    if (event.kind === "batchEnded") this.#batchEnded(agent, event);
    // One that can be settled by nobody any more has been given up.
    if (event.kind !== "resolved" || event.committed === undefined) return;
    const name = this.nameOf(agent, event.batch, event.number);
    const key = `${name} from ${event.from}, round ${event.round}`;
    this.#note(key, agent.rank, event.committed, "resolved");
  }

  /**
   * Every agent that lives has heard of the end of a batch soon after the first. For schedules in which nothing but processes
   * and calls comes to grief: what is cut off or stopped hears later.
   */
  checkEnds(withinMs: number): void {
    for (const [batch, agents] of this.#standing) {
      const ends = [...agents.values()].map(({ ended }) => ended);
      const first = Math.min(...ends);
      for (const [agent, { generation, ended }] of agents) {
        const isSame = agent.isAlive && agent.generation === generation;
        if (!isSame || first === Number.POSITIVE_INFINITY) continue;
        // One that was closed in order ends where its last round does.
        const since = Math.max(first, this.#lastRoundOf(batch, ended));
        this.require(ended - since <= withinMs, "every end is heard in time", () => {
          return `${agent.name} heard of the end of ${batch} ${(ended - since).toFixed(0)} ms after the first`;
        });
      }
    }
  }

  /** No call waits for its deadline in a batch that is over. For schedules in which nothing is silent. */
  checkHeard(withinMs: number): void {
    for (const { call, name } of this.#transfers.values()) {
      const told = this.#standing.get(name)?.get(call.client.agent)?.ended ?? Number.POSITIVE_INFINITY;
      const tookMs = (call.ended ?? call.began) - Math.max(call.began, told);
      this.require(tookMs <= withinMs, "a batch that is over holds nobody up", () => {
        return `${call.client.name} call ${call.number} of ${name} was told ${tookMs.toFixed(0)} ms later: ${brief(call.error ?? call.result)}`;
      });
    }
  }

  /**
   * Whoever was left by a rank with a newer version is told so, and not only that the rank has given the round up. For schedules in which
   * nothing but calls comes to grief.
   */
  checkStale(): void {
    const all = [...this.#transfers.values()];
    for (const transfer of all) {
      const { call, name, from, version = 0 } = transfer;
      const round = roundOf(call);
      if (call.error?.code !== "TB_CANCELLED" || call.isCancelled || round === undefined) continue;
      const same = all.filter((other) => other.name === name && other.from === from);
      // Whose deadline came, who was taken back, or who met a round of the opposite direction, ends it for another reason.
      const gaveUp = same.some(
        (other) =>
          (roundOf(other.call) ?? 0) >= round &&
          (other.call.isCancelled || ["TB_TIMEOUT", "TB_BUSY"].includes(other.call.error?.code ?? "")),
      );
      const isNewer = same.some(
        (other) =>
          other.call.client.rank === call.error!.details["rank"] &&
          (other.version ?? 0) > version &&
          overlaps(other.call, call),
      );
      this.require(gaveUp || !isNewer, "a newer version is told as such", () => {
        return `${call.client.name} call ${call.number} of version ${version}, round ${round}: ${brief(call.error)}`;
      });
    }
  }

  /** Until when calls of a registration were in its rounds, as far as they were made before. */
  #lastRoundOf(name: string, before: number): number {
    const ends = [...this.#transfers.values()]
      .filter((transfer) => transfer.name === name && transfer.call.began < before)
      .filter(({ call }) => call.ended === undefined || roundOf(call) !== undefined)
      .map(({ call }) => Math.min(before, call.ended ?? call.began + call.timeoutMs + graceMs));
    return Math.max(0, ...ends);
  }

  /**
   * A rank that was called absent had not begun the round. For schedules in which whoever calls is heard by all: nothing is cut
   * off or stopped, and nothing is asked of the store before a call is posted.
   */
  checkAbsences(): void {
    for (const { call, name, from } of this.#transfers.values()) {
      const absent = call.error?.code === "TB_TIMEOUT" ? call.error.details["absent"] : undefined;
      if (!Array.isArray(absent)) continue;
      const began = [...this.#transfers.values()].find(
        (other) =>
          other.name === name &&
          other.from === from &&
          absent.includes(other.call.client.rank) &&
          roundOf(other.call) === roundOf(call) &&
          other.call.began + surelyPostedMs < call.ended!,
      );
      this.require(began === undefined, "blame is right", () => {
        const { client, number } = began!.call;
        return `${call.client.name} call ${call.number} took rank ${client.rank} for absent, which had made call ${number}`;
      });
    }
  }

  /** While the store answers, no call ends with a round of which all could know before it was made that it had failed. */
  checkFresh(): void {
    for (const { call, name, from } of this.#transfers.values()) {
      const round = call.error === undefined ? undefined : roundOf(call);
      if (round === undefined || call.isCancelled || endsAnyCall.has(call.error!.code)) continue;
      const failed = this.#failed.get(`${name} from ${from}, round ${round}`);
      this.require(
        failed === undefined || failed >= call.began,
        "a round that had failed ends no call",
        () => {
          return `${call.client.name} call ${call.number}, at ${call.began}: round ${round} had failed at ${failed}`;
        },
      );
    }
  }

  /**
   * A round fails for a reason: a call of it, or of a later one, was taken back, or has waited for too long. For schedules in which
   * nothing but calls comes to grief.
   */
  checkReasons(): void {
    const failed = new Map<string, TransferCall[]>();
    for (const transfer of this.#transfers.values()) {
      const round = transfer.call.error === undefined ? undefined : roundOf(transfer.call);
      const key = `${transfer.name} from ${transfer.from}, round ${round}`;
      if (round !== undefined) failed.set(key, [...(failed.get(key) ?? []), transfer]);
    }
    const reasons = ["TB_TIMEOUT", "TB_BUSY", "TB_STALE_VERSION"];
    const isReason = ({ call }: TransferCall) => call.isCancelled || reasons.includes(call.error!.code);
    for (const [round, transfers] of failed) {
      const hasReason = transfers.some(isReason) || this.#later(transfers[0]!).some(isReason);
      this.require(hasReason, "a round fails for a reason", () => {
        return `${round}: ${transfers.map(({ call }) => `${call.client.name}: ${brief(call.error)}`).join("; ")}`;
      });
    }
  }

  /**
   * Who is blamed is to blame. For schedules in which nothing but calls comes to grief: a rank that completed a round has not
   * ended it, and one that had called does not name itself where another can tell who has not.
   */
  checkBlamed(): void {
    const all = [...this.#transfers.values()];
    for (const { call, registration, name, from } of all) {
      const round = call.error === undefined ? undefined : roundOf(call);
      if (round === undefined) continue;
      const { rank } = call.error!.details;
      if (call.error!.code === "TB_BUSY") {
        // It may have completed this round before: it is one that has called the other way.
        const hasTurned = all.some(
          (other) => other.call.client.rank === rank && isOpposed(other, { call, name, from }, all),
        );
        this.require(hasTurned, "blame is right", () => {
          return `${call.client.name} call ${call.number}: rank ${rank} is said to have called the other way in round ${round}`;
        });
        continue;
      }
      const isSame = (other: TransferCall) => other.name === name && other.from === from;
      const completed = all.some(
        (other) =>
          isSame(other) &&
          other.call.client.rank === rank &&
          !other.call.error &&
          roundOf(other.call) === round,
      );
      // The failure of a later round, which that rank was in, ends this one for those who are still in it.
      const ahead = Number(/round (\d+) failed on rank/.exec(call.error!.message)?.[1] ?? round);
      const isAhead =
        ahead > round || this.#later({ call, name, from }).some((other) => other.call.client.rank === rank);
      this.require(!completed || isAhead, "blame is right", () => {
        return `${call.client.name} call ${call.number}: rank ${rank} is blamed for round ${round}, which it completed`;
      });
      const absent = registration.ranks.filter(
        (other) =>
          !all.some((each) => isSame(each) && each.call.client.rank === other && overlaps(each.call, call)),
      );
      // Somebody whose deadline came at the same time has waited for one of those.
      const couldKnow = all.some(
        (other) =>
          isSame(other) &&
          other.call.error?.code === "TB_TIMEOUT" &&
          absent.includes(other.call.error.details["rank"] as number) &&
          roundOf(other.call) === round &&
          other.call.began + other.call.timeoutMs <= call.began + call.timeoutMs + sameTimeMs,
      );
      const isOwn = call.error!.code === "TB_TIMEOUT" && rank === call.client.rank && couldKnow;
      this.require(!isOwn, "blame is right", () => {
        return `${call.client.name} call ${call.number} blames itself for round ${round}, to which ${absent} did not come`;
      });
    }
  }

  /** Calls of later rounds that failed: for those who are still in an earlier one, the log ends that as well. */
  #later({ call, name, from }: Pick<TransferCall, "call" | "name" | "from">): TransferCall[] {
    const round = roundOf(call) ?? 0;
    return [...this.#transfers.values()].filter(
      (other) =>
        other.name === name &&
        other.from === from &&
        other.call.error !== undefined &&
        (roundOf(other.call) ?? 0) > round,
    );
  }

  /** Calls that should have ended by now. */
  overdue(calls: Iterable<Call>): void {
    for (const call of calls) {
      if (call.ended !== undefined || !call.client.isAlive) continue;
      this.violate("every call ends", `${call.client.name} call ${call.number} (${call.type}) never ended`);
    }
  }

  #registered(
    agent: SimulatedAgent,
    { batch, number }: { readonly batch: unknown; readonly number: number },
  ) {
    const { store } = this.#cluster;
    const isReady = [...store.entries.keys()].some(
      (each) => each.startsWith(`bus/batch/s_${String(batch)}-`) && each.endsWith(`/${number}/ready`),
    );
    this.require(isReady || store.state !== "up", "nobody has a batch before all have prepared it", () => {
      return `${agent.name} has ${String(batch)} #${number}`;
    });
    this.#lives.set(`${agent.rank} ${String(batch)} #${number}`, store.life);
    const key = this.nameOf(agent, batch, number);
    const agents = this.#standing.get(key) ?? new Map();
    this.#standing.set(key, agents);
    agents.set(agent, { generation: agent.generation, ended: Number.POSITIVE_INFINITY });
  }

  #batchEnded(agent: SimulatedAgent, { batch, number }: Extract<AgentEvent, { kind: "batchEnded" }>) {
    const known = this.#standing.get(this.nameOf(agent, batch, number))?.get(agent);
    if (known === undefined || known.generation !== agent.generation) return;
    known.ended = Math.min(known.ended, this.#cluster.scheduler.now);
  }

  /** Whoever asks is told where it began: a rank that stands on a side, and of those that it says were absent, the lowest. */
  #checkBlame(call: Call, { code, message, details }: TensorBusError): void {
    const { rank, absent } = details;
    const isOfRound = call.type === "Transfer" && typeof details["round"] === "number";
    const ranks = ranksOf(this.#cluster.launch.sides);
    const isNamed = typeof rank === "number" && ranks.includes(rank);
    this.require(!isOfRound || code === "TB_BUSY" || isNamed, "blame is right", () => {
      return `${call.client.name} call ${call.number}: ${code} names rank ${rank}: ${message}`;
    });
    if (!Array.isArray(absent) || absent.length === 0) return;
    this.require(rank === Math.min(...absent), "blame is right", () => {
      return `${call.client.name} call ${call.number}: ${code} names rank ${rank}, absent were ${absent}`;
    });
  }

  #checkTime(call: Call): void {
    const { client, began, ended, timeoutMs, error } = call;
    if (error?.code === "TB_AGENT_LOST" || error?.code === "TB_AGENT_UNRESPONSIVE") return;
    const late = ended! - began - timeoutMs;
    const wasStopped = this.#stops.some(
      ({ agent, from, to }) => agent.rank === client.rank && from <= ended! && to >= began,
    );
    this.require(wasStopped || late <= graceMs + slackMs, "calls end in time", () => {
      return `${client.name} call ${call.number} (${call.type}) ended ${late.toFixed(1)} ms after its deadline`;
    });
  }

  #checkDelivered(transfer: TransferCall, round: number): void {
    const { registration, call, version } = transfer;
    const rule = "what a completed round delivered";
    const who = `${call.client.name} call ${call.number}, round ${round}`;
    const stampOf = new Map<number, number>();
    const isOfCall = (source: TransferCall | undefined): source is TransferCall =>
      source?.registration.plan === registration.plan &&
      source.from === transfer.from &&
      source.registration.side === transfer.from;
    // Elements of one call mostly lie side by side.
    let source: TransferCall | undefined;
    const isWhole = registration.everyElement((value, tensor, globalIndex) => {
      const stamp = Math.floor(value / 512);
      const isNext = source?.stamp !== stamp;
      if (isNext) source = this.#transfers.get(stamp);
      const isThere = value % 256 === globalIndex && Math.floor(value / 256) % 2 === tensor;
      if (!isThere || (isNext && !isOfCall(source))) {
        this.violate(rule, `${who}: element ${globalIndex} of ${tensor} is ${value}`);
        return false;
      }
      if (!isNext) return true;
      const { rank } = source!.call.client;
      const known = stampOf.get(rank);
      stampOf.set(rank, stamp);
      if (known === undefined || known === stamp) return true;
      this.violate(rule, `${who}: two calls of rank ${rank} are mixed`);
      return false;
    });
    if (!isWhole) return;
    for (const [rank, stamp] of stampOf) {
      const source = this.#transfers.get(stamp)!;
      const sent = roundOf(source.call);
      this.require(sent === undefined || sent === round, rule, () => {
        return `${who}: what rank ${rank} sent in round ${sent} (call ${source.call.number})`;
      });
      this.require(
        version === undefined || source.version === version,
        "versions are not mixed",
        () => `${who}: version ${source.version} of rank ${rank}, asked for ${version}`,
      );
      const { version: told } = call.result as { readonly version?: bigint };
      this.require(
        told === undefined || source.version === undefined || BigInt(source.version) === told,
        "versions are not mixed",
        () => `${who}: told version ${told}, rank ${rank} has sent ${source.version}`,
      );
    }
    registration.settled = registration.values.slice();
  }

  /** Memory that a call must have left alone. */
  #checkSame({ before, registration, call }: TransferCall, now: Int32Array): void {
    const isSame = areSame(before, now);
    this.require(isSame, "memory of a round that failed is unchanged", () => {
      return `${call.client.name} call ${call.number}: ${brief(call.error ?? call.result)}`;
    });
    registration.settled = now.slice();
  }

  /** Between calls, nothing changes but what is in doubt. */
  checkSettled(registration: Registration): void {
    const { settled, values } = registration;
    if (settled === undefined) return;
    const isSame = areSame(settled, values);
    this.require(isSame, "memory changes in calls alone", () => {
      return `${registration.client.name}, batch ${registration.plan.id}: it changed after its last call`;
    });
  }

  #record({ registration, name, call, from }: TransferCall, round: number, completed: boolean): void {
    if (registration.plan.commit !== "staged") return;
    const key = `${name} from ${from}, round ${round}`;
    this.#note(key, call.client.rank, completed, call.error ?? "completed");
  }

  #note(key: string, rank: number, committed: boolean, how: unknown): void {
    const outcomes = this.#staged.get(key) ?? { committed: new Map(), aborted: new Map() };
    this.#staged.set(key, outcomes);
    (committed ? outcomes.committed : outcomes.aborted).set(rank, how);
    this.require(
      outcomes.committed.size === 0 || outcomes.aborted.size === 0,
      "staged is all or nothing",
      () => {
        const show = (map: Map<number, unknown>) =>
          [...map].map(([at, why]) => `${at} (${brief(why)})`).join(", ");
        return `${key}: committed on ${show(outcomes.committed)}; not on ${show(outcomes.aborted)}`;
      },
    );
  }
}
