/** Exchanges on the wire, as text: recorded by a proxy between a client and a server, replayed against either alone. */
import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";

/** What one end sent before the other had its say, in hexadecimal; `>` is the client's. */
type Turn = readonly [">" | "<", string];

export interface Exchange {
  /** Who recorded it: the version of torch. */
  readonly torch: string;
  /** What the client said came of each operation, in its own words. */
  readonly results?: readonly (readonly [string, unknown])[];
  /** One list a connection, in the order in which they were opened. */
  readonly connections: readonly (readonly Turn[])[];
}

/** Adds what was sent to the last turn if it is the same end's, else as a new turn. */
function append(turns: [">" | "<", string][], end: ">" | "<", bytes: Buffer): void {
  const last = turns.at(-1);
  if (last !== undefined && last[0] === end) last[1] += bytes.toString("hex");
  else turns.push([end, bytes.toString("hex")]);
}

/** A proxy that writes down what goes either way. */
export class RecordingProxy implements AsyncDisposable {
  readonly connections: [">" | "<", string][][] = [];
  readonly #server: Server;

  private constructor(port: number) {
    this.#server = createServer((client) => {
      const turns: [">" | "<", string][] = [];
      this.connections.push(turns);
      const server = connect({ port, host: "127.0.0.1" });
      client.on("data", (bytes) => append(turns, ">", bytes)).on("error", () => {});
      server.on("data", (bytes) => append(turns, "<", bytes)).on("error", () => {});
      client.pipe(server).pipe(client);
    });
  }

  static async to(port: number): Promise<RecordingProxy> {
    const proxy = new RecordingProxy(port);
    await once(proxy.#server.listen(0, "127.0.0.1"), "listening");
    return proxy;
  }

  get port(): number {
    return (this.#server.address() as { port: number }).port;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await once(this.#server.close(), "close");
  }
}

/** What a socket receives, in pieces of asked-for sizes. */
class Incoming {
  readonly #chunks: AsyncIterator<Buffer>;
  #held = Buffer.alloc(0);

  constructor(socket: Socket) {
    this.#chunks = socket[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  }

  /** So many bytes; fewer only at the end. */
  async take(bytes: number): Promise<Buffer> {
    while (this.#held.length < bytes) {
      const { value, done } = await this.#chunks.next();
      if (done) break;
      this.#held = Buffer.concat([this.#held, value]);
    }
    const taken = this.#held.subarray(0, bytes);
    this.#held = this.#held.subarray(bytes);
    return taken;
  }
}

/** Plays the recorded clients against a real server, piece by piece of `pieceBytes`; answers what the server said. */
export async function playClients(exchange: Exchange, port: number, pieceBytes: number): Promise<Turn[][]> {
  const heard: Turn[][] = [];
  for (const turns of exchange.connections) {
    const socket = connect({ port, host: "127.0.0.1", noDelay: true });
    await once(socket, "connect");
    const incoming = new Incoming(socket);
    const mine: Turn[] = [];
    heard.push(mine);
    for (const [end, hex] of turns) {
      const bytes = Buffer.from(hex, "hex");
      if (end === "<") mine.push(["<", (await incoming.take(bytes.length)).toString("hex")]);
      else {
        mine.push([">", hex]);
        for (let at = 0; at < bytes.length; at += pieceBytes)
          socket.write(bytes.subarray(at, at + pieceBytes));
      }
    }
    // Nothing more than what was recorded.
    socket.end();
    const rest = await incoming.take(Number.POSITIVE_INFINITY);
    if (rest.length > 0) mine.push(["<", rest.toString("hex")]);
  }
  return heard;
}

/** Plays the recorded server to a real client: answers what was recorded to exactly the bytes that were recorded. */
export class ReplayServer implements AsyncDisposable {
  /** What did not come as recorded. */
  readonly differences: string[] = [];
  /** Recorded bytes of clients that have come. */
  heardBytes = 0;
  readonly #server: Server;

  private constructor(exchange: Exchange) {
    let next = 0;
    this.#server = createServer((socket) => {
      socket.on("error", () => {});
      const turns = exchange.connections[next] ?? [];
      this.#play(socket, turns, next).catch((error: Error) => {
        this.differences.push(error.message);
        socket.destroy();
      });
      next += 1;
    });
  }

  static async of(exchange: Exchange): Promise<ReplayServer> {
    const server = new ReplayServer(exchange);
    await once(server.#server.listen(0, "127.0.0.1"), "listening");
    return server;
  }

  get port(): number {
    return (this.#server.address() as { port: number }).port;
  }

  async #play(socket: Socket, turns: readonly Turn[], connection: number): Promise<void> {
    const incoming = new Incoming(socket);
    for (const [index, [end, hex]] of turns.entries()) {
      if (end === "<") {
        socket.write(Buffer.from(hex, "hex"));
        continue;
      }
      const bytes = await incoming.take(hex.length / 2);
      this.heardBytes += bytes.length;
      if (bytes.toString("hex") === hex) continue;
      throw new Error(
        `connection ${connection}, turn ${index}: ${bytes.toString("hex")}, recorded is ${hex}`,
      );
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await once(this.#server.close(), "close");
  }
}
