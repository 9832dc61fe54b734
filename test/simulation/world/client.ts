/** A client process of the simulated cluster, on one rank and for one side of its pairs. */
import { randomBytes } from "node:crypto";
import type { ClientIdentity, CommandType } from "../../../src/bus/queue/command-header.ts";
import type { Command, CommandBody } from "../../../src/bus/queue/commands.ts";
import { TensorBusError } from "../../../src/errors.ts";
import type { SimulatedAgent } from "./agent.ts";
import type { Cluster } from "./cluster.ts";
import { Process } from "./scheduler.ts";

/** One command, from when it was asked to when it was answered. */
export interface Call {
  /** Of all clients. */
  readonly number: number;
  /** Of this client. */
  readonly command: bigint;
  readonly client: SimulatedClient;
  readonly type: CommandType;
  readonly body: object;
  readonly began: number;
  readonly timeoutMs: number;
  ended: number | undefined;
  result: unknown;
  error: TensorBusError | undefined;
  /** Its client has taken it back. */
  isCancelled: boolean;
}

const queueMs = 0.05;
/** An agent that has ended is noticed after so long. */
const lostMs = 100;
/** One that says nothing is given up so long after the deadline. */
const patienceMs = 2000;

export class SimulatedClient {
  readonly rank: number;
  readonly side: "A" | "B";
  readonly process: Process;
  readonly identity: ClientIdentity;
  readonly #cluster: Cluster;
  #commands = 0n;

  /** The next client of that rank and side. */
  constructor(cluster: Cluster, rank: number, side: "A" | "B") {
    this.rank = rank;
    this.side = side;
    this.#cluster = cluster;
    this.process = new Process(this.name);
    this.identity = {
      id: randomBytes(8).readBigUInt64LE() >> 2n,
      pid: 1000 + rank,
      startTime: 1n,
      boot: "simulation",
      uid: 0,
      wake: "/none",
    };
  }

  get name(): string {
    return `client ${this.rank}${this.side}`;
  }
  get isAlive(): boolean {
    return this.process.state !== "dead";
  }
  get agent(): SimulatedAgent {
    return this.#cluster.agentOf(this.rank);
  }

  kill(): void {
    if (!this.isAlive) return;
    this.#cluster.trace.say(this.name, "is killed");
    this.#cluster.scheduler.kill(this.process);
    this.agent.clientEnded(this.identity);
  }

  /** Asks the agent; `settled` is called as this client's process when the answer is there. */
  call<T extends CommandType>(
    type: T,
    body: CommandBody<T>,
    timeoutMs: number,
    settled: (call: Call) => void = () => {},
  ): Call {
    const { scheduler, trace } = this.#cluster;
    const { agent } = this;
    const call: Call = {
      number: this.#cluster.countCall(),
      command: ++this.#commands,
      client: this,
      type,
      body,
      began: scheduler.now,
      timeoutMs,
      ended: undefined,
      result: undefined,
      error: undefined,
      isCancelled: false,
    };
    const command = {
      type,
      id: call.command,
      timestamp: 0,
      semaphore: `/call-${call.number}`,
      client: this.identity,
      deadline: { boot: "simulation", ns: 0n },
      acknowledged: [],
      ...body,
    } as unknown as Command;
    const quiet = type === "QueryStatus";
    if (!quiet) trace.say(this.name, `calls ${call.number}: ${type}`, shown(body));
    const settle = (result: unknown, error: TensorBusError | undefined) => {
      if (call.ended !== undefined) return;
      call.ended = scheduler.now;
      call.result = result;
      call.error = error;
      if (!quiet) trace.say(this.name, `call ${call.number} ${error?.code ?? "done"}`, error ?? result);
      settled(call);
    };
    const { process } = agent;
    scheduler.afterFor(process, queueMs, () => {
      const left = call.began + timeoutMs - scheduler.now;
      agent.take(command, Math.max(0, left), (answer) => {
        scheduler.afterFor(this.process, queueMs, () =>
          "error" in answer ? settle(undefined, answer.error) : settle(answer.result, undefined),
        );
      });
    });
    const watch = () => {
      if (call.ended !== undefined) return;
      if (process.state === "dead") {
        settle(undefined, new TensorBusError("TB_AGENT_LOST", "the agent has ended"));
      } else if (scheduler.now > call.began + timeoutMs + patienceMs && process.state === "stopped") {
        settle(undefined, new TensorBusError("TB_AGENT_UNRESPONSIVE", "the agent says nothing"));
      } else {
        scheduler.afterFor(this.process, lostMs, watch);
      }
    };
    scheduler.afterFor(this.process, lostMs, watch);
    return call;
  }

  /** Takes a call back. */
  cancel(call: Call): void {
    if (call.ended !== undefined || !this.isAlive) return;
    this.#cluster.trace.say(this.name, `takes call ${call.number} back`);
    call.isCancelled = true;
    this.call("Cancel", { command: call.command }, 1000);
  }
}

function shown(body: object): object {
  const { tensors, regions, layout, ...rest } = body as Record<string, unknown>;
  return rest;
}
