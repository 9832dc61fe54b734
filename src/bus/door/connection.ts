/**
 * One client at the agent's socket, from its connection to its end, which is the client's end. Its commands run as those of
 * the queue do; its answers go to whoever is still there.
 */
import { randomBytes } from "node:crypto";
import type { Socket } from "node:net";
import { TensorBusError } from "../../errors.ts";
import { bootId, momentIn, randomClientId } from "../process/identity.ts";
import { generateSemaphoreName } from "../process/semaphore.ts";
import type { ClientIdentity } from "../queue/command-header.ts";
import { batchKey, bodySchemas, type Command, checkBody } from "../queue/commands.ts";
import { closeDescriptors, type DescriptorSocket, descriptorsPerHandOver } from "./descriptors.ts";
import { fitIntegers } from "./integers.ts";
import {
  type AgentFrame,
  type CommandFrame,
  type DoorLimits,
  encodeFrame,
  FrameReader,
  numberOf,
  readCommand,
  readHello,
} from "./protocol.ts";

/** What a connection needs of the door and its agent. */
export interface ConnectionHost {
  readonly rank: number;
  readonly sides: Readonly<Record<string, readonly number[]>>;
  readonly generation: bigint;
  /** The version of the package, for people. */
  readonly version: string;
  readonly descriptors: DescriptorSocket;
  /** No command is taken any more. */
  readonly isDraining: () => boolean;
  readonly limits: DoorLimits;
  /** Bytes of unfinished frames have come or gone; false if there are too many. */
  readonly account: (bytes: number) => boolean;
  readonly run: (command: Command) => unknown;
  readonly onWelcome: (connection: DoorConnection) => void;
  readonly onEnd: (connection: DoorConnection) => void;
}

export class DoorConnection {
  readonly #host: ConnectionHost;
  readonly #socket: Socket;
  readonly #uid: number;
  readonly #secret = randomBytes(16);
  readonly #reader = new FrameReader();
  /** Batches that it has registered: what it is told of. */
  readonly #batches = new Set<string>();
  readonly #running = new Set<Promise<void>>();
  #identity: ClientIdentity | undefined;
  #accounted = 0;
  #timer: NodeJS.Timeout | undefined;
  #ended = false;

  constructor(host: ConnectionHost, socket: Socket, uid: number) {
    this.#host = host;
    this.#socket = socket;
    this.#uid = uid;
    this.#limit(this.#host.limits.handshakeMs, "did not say hello");
    socket.on("data", (chunk: Buffer) => this.#take(chunk));
    socket.on("error", () => this.#end());
    socket.on("close", () => this.#end());
    socket.on("end", () => socket.end());
  }

  /** The client's identity, once it has been welcomed. */
  get identity(): ClientIdentity | undefined {
    return this.#identity;
  }

  /** The commands under way; none of them rejects. */
  get running(): readonly Promise<void>[] {
    return [...this.#running];
  }

  send(frame: AgentFrame): void {
    if (this.#ended) return;
    this.#socket.write(encodeFrame(frame));
    if (this.#socket.writableLength > this.#host.limits.unreadBytes) this.#socket.destroy();
  }

  /** Says why, and closes the connection. */
  refuse(error: TensorBusError): void {
    this.send({ type: "refused", error });
    this.close();
  }

  /** Closes it once what was sent has been written, in a moment at most. */
  close(): void {
    this.#socket.end();
    setTimeout(() => this.#socket.destroy(), 1000).unref();
  }

  /** True for a client that has registered this batch. */
  knows(batch: string): boolean {
    return this.#batches.has(batch);
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    clearTimeout(this.#timer);
    this.#host.account(-this.#accounted);
    this.#host.descriptors.forget(this.#secret);
    this.#socket.destroy();
    this.#host.onEnd(this);
  }

  #limit(milliseconds: number, what: string): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      const message = `the client ${what} within ${milliseconds} ms`;
      this.refuse(new TensorBusError("TB_TIMEOUT", message, { details: { timeoutMs: milliseconds } }));
    }, milliseconds).unref();
  }

  #take(chunk: Buffer): void {
    try {
      for (const frame of this.#reader.push(chunk, () => this.#maxFrameBytes())) {
        // A frame that was refused ends the connection: what came behind it is not looked at.
        if (this.#ended || this.#socket.writableEnded) return;
        this.#handle(frame);
      }
      this.#watchUnfinished();
    } catch (error) {
      this.refuse(error as TensorBusError);
    }
  }

  #maxFrameBytes(): number {
    return this.#identity === undefined ? this.#host.limits.helloBytes : this.#host.limits.frameBytes;
  }

  #watchUnfinished(): void {
    const { unfinishedBytes } = this.#reader;
    const grown = unfinishedBytes - this.#accounted;
    this.#accounted = unfinishedBytes;
    if (!this.#host.account(grown)) {
      const max = this.#host.limits.unfinishedBytes;
      throw new TensorBusError("TB_QUEUE_FULL", `the unfinished frames of all clients exceed ${max} bytes`, {
        details: { max },
      });
    }
    if (this.#identity === undefined) return;
    if (unfinishedBytes === 0) {
      clearTimeout(this.#timer);
      this.#timer = undefined;
    } else if (this.#timer === undefined) {
      this.#limit(this.#host.limits.frameMs, "did not end a frame");
    }
  }

  #handle(bytes: Buffer): void {
    if (this.#identity === undefined) {
      this.#welcome(bytes);
      return;
    }
    let frame: CommandFrame;
    try {
      frame = readCommand(bytes);
    } catch (error) {
      const id = numberOf(bytes);
      if (id === undefined) throw error;
      this.#fail(id, error as TensorBusError);
      return;
    }
    this.#start(frame);
  }

  #welcome(bytes: Buffer): void {
    const { hello, protocol } = readHello(bytes);
    const { rank, sides, generation, version, descriptors } = this.#host;
    if (this.#host.isDraining()) throw drainingError(rank);
    descriptors.expect(this.#secret, this.#uid);
    this.#identity = {
      id: randomClientId(),
      pid: hello.pid ?? 0,
      startTime: 0n,
      boot: bootId(),
      uid: this.#uid,
      wake: "",
    };
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#host.onWelcome(this);
    const { frameBytes, commands } = this.#host.limits;
    this.send({
      type: "welcome",
      protocol,
      agent: version,
      rank,
      sides,
      generation,
      pid: process.pid,
      secret: this.#secret,
      limits: { frameBytes, commands, descriptors: descriptorsPerHandOver },
    });
  }

  #start(frame: CommandFrame): void {
    const { id } = frame;
    let descriptors: number[] = [];
    try {
      descriptors = this.#takeDescriptors(frame);
      if (frame.type === "Lend") {
        this.#host.descriptors.lend(this.#secret);
        this.send({ type: "answer", id, ok: true, value: {} });
        return;
      }
      const command = this.#commandOf(frame, descriptors);
      this.#requireRoom(command);
      const result = this.#host.run(command);
      if (!(result instanceof Promise)) {
        this.send({ type: "answer", id, ok: true, value: result ?? null });
        return;
      }
      this.#await(command, id, result, descriptors);
      descriptors = [];
    } catch (error) {
      this.#fail(id, error);
    } finally {
      closeDescriptors(descriptors);
    }
  }

  #takeDescriptors({ handOvers }: CommandFrame): number[] {
    return handOvers === undefined ? [] : this.#host.descriptors.take(this.#secret, ...handOvers);
  }

  #requireRoom(command: Command): void {
    // What ends a command, or asks about it, must come through.
    if (command.type === "Cancel" || command.type === "QueryStatus") return;
    if (this.#host.isDraining()) throw drainingError(this.#host.rank);
    if (this.#running.size < this.#host.limits.commands) return;
    const message = `the client already has ${this.#running.size} commands under way: wait for their answers`;
    throw new TensorBusError("TB_QUEUE_FULL", message, { details: { capacity: this.#host.limits.commands } });
  }

  #commandOf(frame: CommandFrame, descriptors: readonly number[]): Command {
    const type = frame.type as Command["type"];
    const body = checkBody(type, fitIntegers(bodySchemas[type], frame.body ?? {}));
    if (type === "RegisterTensors") placeRegions(body as RegisterBody, descriptors);
    return {
      ...body,
      type,
      id: BigInt(frame.id),
      timestamp: frame.timestamp ?? 0,
      semaphore: frame.name ?? generateSemaphoreName(type, frame.id),
      client: this.#identity!,
      deadline: momentIn(frame.timeoutMs),
      acknowledged: [],
    } as Command;
  }

  #await(command: Command, id: number, result: Promise<unknown>, descriptors: readonly number[]): void {
    const running: Promise<void> = result
      .then(
        (value) => {
          if (command.type === "RegisterTensors") this.#batches.add(batchKey(command.batch));
          this.send({ type: "answer", id, ok: true, value: value ?? null });
        },
        (error) => this.#fail(id, error),
      )
      .finally(() => {
        closeDescriptors(descriptors);
        this.#running.delete(running);
      });
    this.#running.add(running);
  }

  #fail(id: number, thrown: unknown): void {
    const error =
      thrown instanceof TensorBusError
        ? thrown
        : new TensorBusError("TB_SYSTEM", thrown instanceof Error ? thrown.message : String(thrown));
    this.send({ type: "answer", id, ok: false, error });
  }
}

type RegisterBody = { regions: { kind: string; fd?: number }[] };

/** Regions name descriptors by their place in the hand-overs; the agent knows them by its own numbers. */
function placeRegions({ regions }: RegisterBody, descriptors: readonly number[]): void {
  for (const [index, region] of regions.entries()) {
    if (region.kind === "host") {
      throw new TensorBusError(
        "TB_UNSUPPORTED",
        "only clients in the agent's own process can register plain memory",
        {
          details: { region: index },
        },
      );
    }
    if (region.kind !== "shared") continue;
    const descriptor = descriptors[region.fd!];
    if (descriptor === undefined) {
      const message = `region ${index} names descriptor ${region.fd}, but only ${descriptors.length} came with the command`;
      throw new TensorBusError("TB_TENSOR_MISSING", message, { details: { region: index, fd: region.fd } });
    }
    region.fd = descriptor;
  }
}

function drainingError(rank: number): TensorBusError {
  return new TensorBusError("TB_CLOSED", `the agent of rank ${rank} is ending and takes no more commands`, {
    details: { rank },
  });
}
