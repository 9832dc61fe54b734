import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { TensorBusError } from "../errors.ts";
import { ServerSession } from "./tcp-session.ts";
import { StoreTable, TableFull } from "./tcp-table.ts";
import { Turns } from "./turns.ts";

export interface TcpStoreServerOptions {
  /** The address to listen on; default `127.0.0.1`. Whoever reaches it can read and write every key: see `docs/stores.md`. */
  readonly host?: string;
  /** Default 0: a free one, which `port` then names. */
  readonly port?: number;
  /** The most bytes of keys, values and requests under way, together; default 1 GiB. What exceeds it is disconnected. */
  readonly maxMemoryBytes?: number;
  /** The most bytes of one request; default 64 MiB. */
  readonly maxRequestBytes?: number;
  /** Default 16,384. One more is disconnected. */
  readonly maxConnections?: number;
  /** Connections that have not shown yet that they are a client's; default 1,024. One more ends the oldest of them. */
  readonly maxUnvalidated?: number;
  /** Milliseconds within which a connection must show that it is a client's; default 10,000. */
  readonly validateTimeoutMs?: number;
}

/** The load of a server at this moment. */
export interface TcpStoreServerStats {
  readonly connections: number;
  readonly keys: number;
  /** Keys that someone waits for. */
  readonly awaitedKeys: number;
  /** Bytes of contents and of requests under way, of at most `maxMemoryBytes`. */
  readonly memoryBytes: number;
}

const defaults = {
  host: "127.0.0.1",
  port: 0,
  maxMemoryBytes: 2 ** 30,
  maxRequestBytes: 64 * 2 ** 20,
  maxConnections: 16_384,
  maxUnvalidated: 1024,
  validateTimeoutMs: 10_000,
} as const;
const keepAliveMs = 10_000;

/**
 * Serves a TCPStore: tensorbus's clients and torch's (`torch.distributed.TCPStore`) meet in it. It lives until it is
 * closed; its contents live as long. `TB_ADDRESS_IN_USE` if the port is taken, `TB_SYSTEM` if it cannot listen there.
 */
export async function serveTcpStore(options: TcpStoreServerOptions = {}): Promise<TcpStoreServer> {
  const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
  const server = new TcpStoreServer({ ...defaults, ...given });
  await server[listen]();
  return server;
}

const listen = Symbol("listen");

export class TcpStoreServer implements AsyncDisposable {
  readonly #options: Required<TcpStoreServerOptions>;
  readonly #server: Server;
  readonly #table: StoreTable;
  readonly #turns = new Turns();
  readonly #sockets = new Set<Socket>();
  /** Connections that have not validated, the oldest first. */
  readonly #unvalidated = new Map<ServerSession, Socket>();
  #requestBytes = 0;
  #closing: Promise<void> | undefined;

  /** `serveTcpStore` makes it listen. */
  constructor(options: Required<TcpStoreServerOptions>) {
    this.#options = options;
    this.#table = new StoreTable(options.maxMemoryBytes);
    this.#server = createServer({ noDelay: true, keepAlive: true, keepAliveInitialDelay: keepAliveMs });
    this.#server.maxConnections = options.maxConnections;
    this.#server.on("connection", (socket) => this.#welcome(socket));
  }

  get host(): string {
    return this.#options.host;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo | null)?.port ?? 0;
  }

  get stats(): TcpStoreServerStats {
    return {
      connections: this.#sockets.size,
      keys: this.#table.size,
      awaitedKeys: this.#table.awaitedKeys,
      memoryBytes: this.#table.bytes + this.#requestBytes,
    };
  }

  /** Stops listening and ends every connection once its answers are on the way; whoever waits learns that it is over. */
  close(): Promise<void> {
    this.#closing ??= new Promise((resolve) => {
      this.#server.close(() => resolve());
      for (const socket of this.#sockets) socket.destroySoon();
      // A client that reads nothing does not hold up the end.
      const force = setTimeout(() => this.#sockets.forEach((socket) => void socket.destroy()), 1000);
      this.#server.once("close", () => clearTimeout(force));
    });
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async [listen](): Promise<void> {
    const { host, port } = this.#options;
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", (cause: NodeJS.ErrnoException) => {
        const code = cause.code === "EADDRINUSE" ? "TB_ADDRESS_IN_USE" : "TB_SYSTEM";
        const message = `the store cannot listen on ${host}:${port}: ${cause.message}`;
        reject(new TensorBusError(code, message, { cause, details: { host, port } }));
      });
      this.#server.listen({ host, port, backlog: 1024 }, resolve);
    });
    this.#server.removeAllListeners("error");
    // What accept() can fail with later (too many open files) ends the connection that came, not the server.
    this.#server.on("error", () => {});
  }

  #welcome(socket: Socket): void {
    this.#sockets.add(socket);
    const session = new ServerSession(socket, {
      table: this.#table,
      turns: this.#turns,
      maxRequestBytes: this.#options.maxRequestBytes,
      account: (delta) => this.#account(delta),
      validated: (session) => {
        clearTimeout(timer);
        this.#unvalidated.delete(session);
      },
    });
    const timer = setTimeout(() => void socket.destroy(), this.#options.validateTimeoutMs);
    socket.on("close", () => {
      clearTimeout(timer);
      this.#sockets.delete(socket);
      this.#unvalidated.delete(session);
    });
    this.#unvalidated.set(session, socket);
    if (this.#unvalidated.size > this.#options.maxUnvalidated) {
      for (const oldest of this.#unvalidated.values()) {
        oldest.destroy();
        break;
      }
    }
  }

  #account(delta: number): void {
    this.#requestBytes += delta;
    const held = this.#table.bytes + this.#requestBytes;
    if (delta <= 0 || held <= this.#options.maxMemoryBytes) return;
    throw new TableFull(
      `the server holds ${held} bytes, and at most ${this.#options.maxMemoryBytes} are allowed`,
    );
  }
}
