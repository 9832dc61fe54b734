/** The programs of the clients: what they ask of their agents, step by step. */
import type { CommandBody } from "../../../src/bus/queue/commands.ts";
import type { TensorBusError } from "../../../src/errors.ts";
import type { Call, SimulatedClient } from "../world/client.ts";
import type { Cluster } from "../world/cluster.ts";
import { Ledger } from "./ledger.ts";
import { placesOf, Registration } from "./registration.ts";
import { type BatchPlan, layoutOf, type SideName, type Step } from "./scenario.ts";
import type { TransferCall } from "./transfer-call.ts";

export class Job {
  readonly cluster: Cluster;
  readonly ledger: Ledger;
  /** By rank, side and batch. */
  readonly #registrations = new Map<string, Registration>();
  readonly #calls = new Set<Call>();
  #version = 0;

  constructor(cluster: Cluster) {
    this.cluster = cluster;
    this.ledger = new Ledger(cluster);
  }

  get registrations(): readonly Registration[] {
    return [...this.#registrations.values()];
  }
  /** Calls under way. What has ended, or whose client has, never is again. */
  get pending(): readonly Call[] {
    for (const call of this.#calls)
      if (call.ended !== undefined || !call.client.isAlive) this.#calls.delete(call);
    return [...this.#calls];
  }

  /** Clients on all ranks, which have registered nothing yet. */
  begin(): void {
    this.#registrations.clear();
    for (const { rank, side } of placesOf(this.cluster.launch)) this.replaceClient(rank, side);
  }

  killClient(rank: number, side: SideName): void {
    this.cluster.clientOf(rank, side).kill();
  }

  /** All processes of a rank. */
  killRank(rank: number): void {
    const { clients } = this.cluster;
    for (const client of clients) if (client.rank === rank) client.kill();
    this.cluster.agentOf(rank).kill(false);
  }

  /** A client in the place of one that has ended. */
  replaceClient(rank: number, side: SideName): void {
    const { cluster } = this;
    const client = cluster.startClient(rank, side);
    for (const plan of cluster.launch.batches) {
      this.#registrations.set(keyOf(rank, side, plan), new Registration(cluster, client, plan));
    }
  }

  /** A client tells its agent of a pair; one that stands already is as good. */
  async initPair(client: SimulatedClient, { pair, spreads }: BatchPlan, timeoutMs: number): Promise<Call> {
    const { sides } = this.cluster.launch;
    const { side } = client;
    const layout = layoutOf(spreads[side], sides[side]);
    return this.#call(client, "InitPair", timeoutMs, {
      pair,
      local: side,
      remote: side === "A" ? "B" : "A",
      worldSize: sides[side].length,
      ...(layout === undefined ? {} : { layout }),
    });
  }

  async register(registration: Registration, timeoutMs: number, body = registration.body): Promise<Call> {
    const { client } = registration;
    registration.instance = undefined;
    const call = await this.#call(client, "RegisterTensors", timeoutMs, body);
    if (call.error !== undefined) return call;
    const { instance, number } = call.result as { readonly instance: bigint; readonly number: number };
    registration.instance = instance;
    registration.number = number;
    registration.name = this.ledger.nameOf(client.agent, registration.plan.id, number);
    registration.settled = registration.values.slice();
    return call;
  }

  /** Pair and batch, of one client. */
  async join(registration: Registration, timeoutMs: number): Promise<TensorBusError | undefined> {
    const { client, plan } = registration;
    const met = await this.initPair(client, plan, timeoutMs);
    if (met.error !== undefined && met.error.code !== "TB_EXISTS") return met.error;
    const { error } = await this.register(registration, timeoutMs);
    return error;
  }

  nextVersion(): number | undefined {
    this.#version += 1;
    return this.cluster.scenario.versions ? this.#version : undefined;
  }

  /** Has clients make the calls of a step, each in its time. */
  begins({ batch, from, parts }: Step): void {
    const { scenario, scheduler } = this.cluster;
    const version = this.nextVersion();
    const plan = this.cluster.launch.batches[batch]!;
    for (const side of ["A", "B"] as const) {
      for (const [place, { at }] of parts[side].entries()) {
        if (at === undefined) continue;
        const rank = this.cluster.launch.sides[side][place]!;
        scheduler.afterFor(undefined, at, () => {
          const registration = this.registrationOf(rank, side, plan);
          if (registration.client.isAlive) this.transfer(registration, from, scenario.callTimeoutMs, version);
        });
      }
    }
  }

  registrationOf(rank: number, side: SideName, plan: BatchPlan): Registration {
    return this.#registrations.get(keyOf(rank, side, plan))!;
  }

  /** One rank's part in a transfer; `undefined` if it has nothing registered. */
  transfer(
    registration: Registration,
    from: SideName,
    timeoutMs: number,
    version: number | undefined,
  ): Call | undefined {
    const { client, instance, plan, side } = registration;
    const asks = side !== from && this.cluster.scenario.asks;
    const isBusy = this.pending.some((call) => call.client === client && batchOf(call) === plan.id);
    if (instance === undefined || isBusy) return undefined;
    const stamp = this.ledger.nextStamp();
    this.ledger.checkSettled(registration);
    if (side === from) registration.fill(stamp);
    registration.settled = undefined;
    const direction = side === from ? ("send" as const) : ("recv" as const);
    const named = asks ? { tellVersion: true } : version === undefined ? {} : { version: BigInt(version) };
    const call: Call = client.call(
      "Transfer",
      { batch: plan.id, direction, instance, ...named },
      timeoutMs,
      () => this.ledger.transferEnded(transfer),
    );
    const transfer: TransferCall = {
      stamp,
      call,
      registration,
      name: registration.name,
      from,
      version: asks ? undefined : version,
      hadDoubt: registration.inDoubt,
      before: registration.values.slice(),
    };
    this.#calls.add(call);
    this.ledger.add(transfer);
    return call;
  }

  /** Takes a call back that is under way on a rank, if one is. */
  cancelOne(rank: number): void {
    const call = this.pending.find(({ client, type }) => client.rank === rank && type === "Transfer");
    if (call !== undefined) call.client.cancel(call);
  }

  /** A call while another of the same client and direction is under way: it is refused at once, and changes nothing. */
  callTwice(rank: number): void {
    const first = this.pending.find(({ client, type }) => client.rank === rank && type === "Transfer");
    if (first === undefined) return;
    const { client, body, timeoutMs, began } = first;
    const second = client.call("Transfer", body as CommandBody<"Transfer">, timeoutMs, (ended) => {
      this.ledger.ended(ended);
      this.ledger.secondEnded(ended, first);
    });
    // The first may still be on its way to the agent.
    if (began < this.cluster.scheduler.now) this.#calls.add(second);
  }

  /** As soon as a call that is under way on a rank is done, the next one is made, and taken back: a round ahead of all others. */
  abortNext(rank: number): void {
    const { scheduler, scenario } = this.cluster;
    const call = this.pending.find(({ client, type }) => client.rank === rank && type === "Transfer");
    const transfer = call === undefined ? undefined : this.ledger.transferOf(call);
    if (call === undefined || transfer === undefined) return;
    const { registration, from } = transfer;
    const look = () => {
      if (!call.client.isAlive) return;
      if (call.ended === undefined) {
        scheduler.afterFor(call.client.process, 1, look);
        return;
      }
      const next =
        call.error === undefined
          ? this.transfer(registration, from, scenario.callTimeoutMs, this.nextVersion())
          : undefined;
      if (next !== undefined) scheduler.afterFor(call.client.process, 3, () => call.client.cancel(next));
    };
    look();
  }

  cleanUpOne(rank: number): void {
    const registration = this.registrations.find(
      ({ client, instance }) => client.rank === rank && client.isAlive && instance !== undefined,
    );
    if (registration !== undefined) this.cleanUp(registration);
  }

  cleanUp(registration: Registration): void {
    const { client, plan, instance } = registration;
    registration.instance = undefined;
    if (instance === undefined) return;
    const call = client.call("CleanupBatch", { batch: plan.id, instance }, 5000, (ended) =>
      this.ledger.ended(ended),
    );
    this.#calls.add(call);
  }

  /** Whether a client's registration stands, as its agent says. */
  async stands({ client, plan, instance }: Registration): Promise<boolean> {
    if (instance === undefined) return false;
    const call = await this.#call(client, "QueryStatus", 1000, { batch: plan.id, instance });
    return call.error === undefined;
  }

  /** Whether all sources have a round ready, as a client's agent says. */
  async isReady({ client, plan, instance }: Registration): Promise<boolean> {
    const call = await this.#call(client, "QueryStatus", 1000, { batch: plan.id, instance });
    return (call.result as { readonly ready?: boolean } | undefined)?.ready === true;
  }

  #call(
    client: SimulatedClient,
    type: "InitPair" | "RegisterTensors" | "QueryStatus",
    timeoutMs: number,
    body: object,
  ): Promise<Call> {
    return new Promise((resolve) => {
      const call = client.call(type, body as never, timeoutMs, (ended) => {
        this.ledger.ended(ended);
        resolve(ended);
      });
      this.#calls.add(call);
    });
  }
}

function keyOf(rank: number, side: SideName, { id }: BatchPlan): string {
  return `${rank}${side} ${id}`;
}

function batchOf({ body }: Call): unknown {
  return (body as { readonly batch?: unknown }).batch;
}
