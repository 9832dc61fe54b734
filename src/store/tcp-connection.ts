import { connect, type Socket } from "node:net";
import {
  frames,
  type Reading,
  readU8,
  readU32,
  stopWaiting,
  WireError,
  WireReader,
  waitCancelled,
} from "./tcp-protocol.ts";

const keepAliveMs = 5000;

/** A request whose answer has not come. */
interface Pending {
  readonly read: () => Reading<unknown>;
  readonly resolve: (value: never) => void;
  readonly reject: (error: unknown) => void;
  /** The answer must come at once: a server that is silent meanwhile is lost. */
  prompt: boolean;
}

export interface TcpAddress {
  readonly host: string;
  readonly port: number;
}

/**
 * One connection to a TCPStore server. Requests are written as they come and answered in their order, so that many are
 * under way at once. It ends once, for everybody: `onEnd` hears why.
 */
export class TcpConnection {
  readonly #socket: Socket;
  readonly #reader = new WireReader();
  readonly #pending: Pending[] = [];
  readonly #onEnd: (connection: TcpConnection, why: Error) => void;
  #nonce = 0;
  #ended: Error | undefined;

  /**
   * Connects once and shows that this is a client; rejects with the system's error. The signal ends the attempt, not the
   * connection. `silenceMs` is how long an answer may take with no byte moving either way.
   */
  static async open(
    address: TcpAddress,
    silenceMs: number,
    signal: AbortSignal,
    onEnd: (connection: TcpConnection, why: Error) => void,
  ): Promise<TcpConnection> {
    signal.throwIfAborted();
    const socket = connect({
      ...address,
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: keepAliveMs,
    });
    const abort = () => void socket.destroy(new Error("the attempt to connect was given up"));
    signal.addEventListener("abort", abort, { once: true });
    try {
      await new Promise<void>((resolve, reject) => {
        socket.once("connect", resolve);
        socket.once("error", reject);
      });
      const connection = new TcpConnection(socket, silenceMs, onEnd);
      connection.#socket.write(frames.validate());
      await connection.ping();
      // More may have come with the answer, and have ended it already.
      if (connection.#ended !== undefined) throw connection.#ended;
      return connection;
    } catch (error) {
      socket.destroy();
      throw error;
    } finally {
      signal.removeEventListener("abort", abort);
    }
  }

  private constructor(
    socket: Socket,
    silenceMs: number,
    onEnd: (connection: TcpConnection, why: Error) => void,
  ) {
    this.#socket = socket;
    this.#onEnd = onEnd;
    socket.on("data", (chunk: Buffer) => {
      this.#reader.push(chunk);
      this.#take();
    });
    socket.on("error", (error) => this.end(error));
    socket.on("close", () => this.end(new Error("the server closed the connection")));
    socket.setTimeout(silenceMs, () => {
      if (this.#pending.some(({ prompt }) => prompt)) this.end(new Error(`no answer for ${silenceMs} ms`));
    });
  }

  /** Requests that await an answer. */
  get pending(): number {
    return this.#pending.length;
  }

  /** Sends a request and resolves with its answer, whenever that comes. */
  send<T>(frame: Buffer, read: () => Reading<T>): Promise<T> {
    return this.#send(frame, read, true).answer;
  }

  /** Resolves once the server has handled everything that was sent before. */
  async ping(before?: Buffer): Promise<void> {
    const nonce = this.#nonce;
    this.#nonce = (nonce + 1) % 2 ** 32;
    const ping = frames.ping(nonce);
    const echo = await this.send(before === undefined ? ping : Buffer.concat([before, ping]), readU32);
    if (echo === nonce) return;
    const error = new WireError(`PING ${nonce} was answered with ${echo}`);
    this.end(error);
    throw error;
  }

  /** Sends a WAIT, and nothing else until it is over. `cancel` gives it up; `over` resolves when the line is free again. */
  wait(frame: Buffer): { answered: Promise<void>; over: Promise<void>; cancel: () => void } {
    let cancelled = false;
    let come!: () => void;
    const answered = new Promise<void>((resolve) => {
      come = resolve;
    });
    const read = function* (): Reading<void> {
      let answer = yield* readU8();
      if (answer === stopWaiting) {
        come();
        if (!cancelled) return;
        // The keys came while the cancellation was on its way, which is answered as well.
        answer = yield* readU8();
      }
      if (!cancelled || answer !== waitCancelled) throw new WireError(`WAIT was answered with ${answer}`);
    };
    const { answer: over, pending } = this.#send(frame, read, false);
    const cancel = () => {
      if (cancelled || !this.#pending.includes(pending)) return;
      cancelled = true;
      pending.prompt = true;
      this.#socket.write(frames.cancelWait());
    };
    return { answered, over, cancel };
  }

  /** Ends the connection: every request fails with `why`. Only the first time counts. */
  end(why: Error): void {
    if (this.#ended !== undefined) return;
    this.#ended = why;
    this.#socket.destroy();
    for (const { reject } of this.#pending.splice(0)) reject(why);
    this.#onEnd(this, why);
  }

  #send<T>(frame: Buffer, read: () => Reading<T>, prompt: boolean): { answer: Promise<T>; pending: Pending } {
    let pending!: Pending;
    const answer = new Promise<T>((resolve, reject) => {
      pending = { read, resolve, reject, prompt };
      if (this.#ended !== undefined) {
        reject(this.#ended);
        return;
      }
      this.#pending.push(pending);
      this.#socket.write(frame);
    });
    return { answer, pending };
  }

  #take(): void {
    try {
      while (this.#pending.length > 0) {
        const answer = this.#reader.next(this.#pending[0]!.read);
        if (answer === undefined) return;
        this.#pending.shift()!.resolve(answer.value as never);
      }
      if (this.#reader.hasMore) throw new WireError("the server sent an answer without a request");
    } catch (error) {
      this.end(error as Error);
    }
  }
}
