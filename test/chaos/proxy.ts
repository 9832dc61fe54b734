/** A proxy of TCP that cuts what goes through it, holds it up, takes its time or lies: the network between two processes of this machine. */
import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";

/** From who connects to who listens, and the other way. */
export type Direction = "there" | "back";

/** What becomes of some bytes that pass; none: nothing. */
export type Lie = (bytes: Buffer, before: Buffer | undefined) => readonly Buffer[];

const bothWays: readonly Direction[] = ["there", "back"];
/** Bytes that wait for a slow reader before no more is read for it. */
const fullBytes = 1 << 20;
/** Of what has passed, so that a text is found that came in two pieces. */
const keptBytes = 256;

/** What goes one way over one connection. */
class Way {
  delayMs = 0;
  /** Looks at all that goes this way. */
  onBytes: ((bytes: Buffer) => void) | undefined;
  lie: Lie | undefined;
  /** Something else has come out of it than went in. */
  hasLied = false;
  #before: Buffer | undefined;
  readonly #from: Socket;
  readonly #to: Socket;
  readonly #queue: { readonly due: number; readonly bytes: Buffer | undefined }[] = [];
  #held = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(from: Socket, to: Socket) {
    this.#from = from;
    this.#to = to;
    from.on("data", (bytes: Buffer) => this.#take(bytes));
    from.on("end", () => this.#take(undefined));
    to.on("drain", () => this.#flow());
  }

  hold(held: boolean): void {
    this.#held = held;
    this.#flow();
    this.#flush();
  }

  end(): void {
    clearTimeout(this.#timer);
  }

  #flow(): void {
    if (this.#held || this.#to.writableLength > fullBytes) this.#from.pause();
    else this.#from.resume();
  }

  #take(bytes: Buffer | undefined): void {
    if (bytes !== undefined) this.onBytes?.(bytes);
    const due = performance.now() + this.delayMs;
    for (const each of this.#told(bytes)) this.#queue.push({ due, bytes: each });
    this.#flush();
  }

  #told(bytes: Buffer | undefined): readonly (Buffer | undefined)[] {
    if (bytes === undefined || this.lie === undefined) return [bytes];
    const told = this.lie(bytes, this.#before);
    this.#before = bytes;
    this.hasLied ||= told.length !== 1 || told[0] !== bytes;
    return told;
  }

  #flush(): void {
    clearTimeout(this.#timer);
    while (!this.#held && this.#queue.length > 0) {
      const wait = this.#queue[0]!.due - performance.now();
      if (wait > 0) {
        this.#timer = setTimeout(() => this.#flush(), wait);
        return;
      }
      const { bytes } = this.#queue.shift()!;
      if (bytes === undefined) this.#to.end();
      else if (!this.#to.destroyed) this.#to.write(bytes);
      this.#flow();
    }
  }
}

interface Pair {
  readonly sockets: readonly [Socket, Socket];
  readonly ways: Readonly<Record<Direction, Way>>;
}

export class CuttingProxy {
  readonly #server: Server;
  readonly #pairs = new Set<Pair>();
  readonly #held: Record<Direction, boolean> = { there: false, back: false };
  readonly #watches = new Set<(passed: string) => void>();
  #targetPort = 0;
  #delayMs = 0;
  #lie: Lie | undefined;
  #refused = false;

  private constructor(server: Server) {
    this.#server = server;
    server.on("connection", (client) => this.#join(client));
  }

  static async open(): Promise<CuttingProxy> {
    const server = createServer({ noDelay: true }).listen(0, "127.0.0.1");
    await once(server, "listening");
    return new CuttingProxy(server);
  }

  get port(): number {
    return (this.#server.address() as { port: number }).port;
  }

  /** Where what comes from here on goes to. */
  leadTo(port: number): void {
    this.#targetPort = port;
  }

  /** Ends all connections that there are. */
  cut(): void {
    for (const { sockets } of this.#pairs) for (const socket of sockets) socket.destroy();
  }

  /** Ends all connections and takes no others, until `false`. */
  refuse(refused: boolean): void {
    this.#refused = refused;
    if (refused) this.cut();
  }

  /** Lets nothing through, and nothing be lost, until `false`. */
  hold(held: boolean, directions = bothWays): void {
    for (const direction of directions) {
      this.#held[direction] = held;
      for (const { ways } of this.#pairs) ways[direction].hold(held);
    }
  }

  /** All that comes from now on takes so many milliseconds, either way. */
  delay(milliseconds: number): void {
    this.#delayMs = milliseconds;
    for (const { ways } of this.#pairs) for (const way of bothWays) ways[way].delayMs = milliseconds;
  }

  /** What passes from now on is told otherwise. Without one, that is over, and connections that carried lies end. */
  lie(lie: Lie | undefined): void {
    this.#lie = lie;
    for (const { ways, sockets } of this.#pairs) {
      for (const way of bothWays) ways[way].lie = lie;
      const hasLied = bothWays.some((way) => ways[way].hasLied);
      if (lie === undefined && hasLied) for (const socket of sockets) socket.destroy();
    }
  }

  /** Resolves once somebody has sent a text that the pattern finds. It may not have got to its end yet. */
  passed(pattern: RegExp): Promise<void> {
    return new Promise((resolve) => {
      const watch = (passed: string) => {
        if (!pattern.test(passed)) return;
        this.#watches.delete(watch);
        resolve();
      };
      this.#watches.add(watch);
    });
  }

  async close(): Promise<void> {
    this.cut();
    this.#server.close();
    await once(this.#server, "close");
  }

  #join(client: Socket): void {
    if (this.#refused) {
      client.on("error", () => {}).destroy();
      return;
    }
    const server = connect({ port: this.#targetPort, host: "127.0.0.1", noDelay: true });
    const ways = { there: new Way(client, server), back: new Way(server, client) };
    const pair: Pair = { sockets: [client, server], ways };
    this.#pairs.add(pair);
    let passed = "";
    ways.there.onBytes = (bytes) => {
      if (this.#watches.size === 0) return;
      passed = passed.slice(-keptBytes) + bytes.toString("latin1");
      for (const watch of this.#watches) watch(passed);
    };
    for (const direction of bothWays) {
      ways[direction].delayMs = this.#delayMs;
      ways[direction].lie = this.#lie;
      ways[direction].hold(this.#held[direction]);
    }
    for (const socket of pair.sockets) {
      socket.on("error", () => {});
      socket.once("close", () => {
        this.#pairs.delete(pair);
        for (const direction of bothWays) ways[direction].end();
        for (const other of pair.sockets) other.destroy();
      });
    }
  }
}
