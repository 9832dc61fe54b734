/** A client of an agent's socket that is nothing but a socket: it sends what a test wants, and reads frames. */
import { createConnection, type Socket } from "node:net";
import { join } from "node:path";
import { pack, unpack } from "../../../src/bus/queue/commands.ts";
import { afterEachTest } from "../../kit/endings.ts";

// biome-ignore lint/suspicious/noExplicitAny: what comes is looked at by the test.
export type Message = Record<string, any>;

const open: RawClient[] = [];
afterEachTest(() => {
  for (const client of open.splice(0)) client.socket.destroy();
});

export function frameOf(message: unknown): Buffer {
  const body = pack(message);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(body.length);
  return Buffer.concat([length, body]);
}

export class RawClient {
  readonly socket: Socket;
  readonly closed: Promise<void>;
  #bytes: Buffer = Buffer.alloc(0);
  #frames: Message[] = [];
  #wake: () => void = () => {};
  #ended = false;
  #id = 0;

  constructor(path: string) {
    this.socket = createConnection({ path });
    this.closed = new Promise((done) => this.socket.once("close", () => done()));
    this.socket.on("error", () => {});
    this.socket.on("data", (chunk) => {
      this.#bytes = Buffer.concat([this.#bytes, chunk]);
      while (this.#bytes.length >= 4 && this.#bytes.length >= 4 + this.#bytes.readUInt32LE(0)) {
        const end = 4 + this.#bytes.readUInt32LE(0);
        this.#frames.push(unpack(this.#bytes.subarray(4, end)) as Message);
        this.#bytes = this.#bytes.subarray(end);
      }
      this.#wake();
    });
    this.socket.once("close", () => {
      this.#ended = true;
      this.#wake();
    });
    open.push(this);
  }

  /** The next frame; `undefined` if the agent has closed the connection. */
  async next(): Promise<Message | undefined> {
    while (this.#frames.length === 0 && !this.#ended) {
      await new Promise<void>((wake) => {
        this.#wake = wake;
      });
    }
    return this.#frames.shift();
  }

  send(message: unknown): void {
    this.socket.write(frameOf(message));
  }

  async hello(more: Message = {}): Promise<Message> {
    this.send({ type: "hello", protocol: [1, 1], client: "test", ...more });
    return (await this.next())!;
  }

  /** The answer to a command. */
  async ask(type: string, body?: unknown, more: Message = {}): Promise<Message> {
    this.#id += 1;
    this.send({
      type,
      id: this.#id,
      timeoutMs: 5000,
      ...(body === undefined ? {} : { body }),
      ...more,
    });
    return (await this.next())!;
  }
}

/** Connects to the agent on a command queue. */
export function rawClient(queue: string): RawClient {
  return new RawClient(join(queue, "client.sock"));
}

export async function welcomed(queue: string): Promise<RawClient> {
  const client = rawClient(queue);
  await client.hello();
  return client;
}
