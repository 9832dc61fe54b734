/**
 * The agent's second door: a Unix socket beside the queue, for clients that are no processes of Node.js. Who comes must be a
 * process of the agent's user, or of one that was allowed; beyond that, client and agent may live in different namespaces.
 */
import { chmodSync, closeSync, constants, openSync, rmSync } from "node:fs";
import { createConnection, createServer, type Server, type Socket } from "node:net";
import { basename, dirname, join, resolve } from "node:path";
import { explained, TensorBusError } from "../../errors.ts";
import { nativeBus } from "../../ffi/bus.ts";
import type { AgentEvent } from "../pair/events.ts";
import { preparePrivateFolder } from "../process/folder.ts";
import type { ClientIdentity } from "../queue/command-header.ts";
import { batchKey, type Command } from "../queue/commands.ts";
import { type ConnectionHost, DoorConnection } from "./connection.ts";
import { DescriptorSocket } from "./descriptors.ts";
import { type DoorLimits, doorLimits } from "./protocol.ts";

interface DoorOptions {
  readonly rank: number;
  readonly generation: bigint;
  /** The version of the package, for people to read. */
  readonly version: string;
  /** `client.sock`; the socket for descriptors stands beside it. */
  readonly path: string;
  /** Users besides the agent's own whose processes may be clients. */
  readonly uids: readonly number[];
  /** The ranks of sides by name, as far as they are known beforehand. */
  readonly sides: Readonly<Record<string, readonly number[]>>;
  /** The name of the agent's own, which clients are lent. */
  readonly heartbeat: string;
  /** Limits below the door's own, for agents that have less to give. */
  readonly limits?: Partial<DoorLimits>;
}

export interface DoorHandlers {
  /** Runs a command; what it gives, or throws, is the command's result. */
  readonly run: (command: Command) => unknown;
  readonly onGone: (client: ClientIdentity) => void;
  readonly onFault: (error: unknown) => void;
}

/** What `sun_path` holds, with the zero behind it: unix(7). */
const maxPathBytes = 107;
/** Stands for whoever a user namespace does not know: nobody in particular. */
const overflowUid = 65_534;

export class Door {
  readonly #options: DoorOptions;
  readonly #handlers: DoorHandlers;
  readonly #server: Server;
  readonly #folder: SocketFolder;
  readonly #descriptors: DescriptorSocket;
  readonly #limits: DoorLimits;
  readonly #all = new Set<DoorConnection>();
  /** Those that were not refused: who is refused again and again keeps nobody out. */
  readonly #admitted = new Set<DoorConnection>();
  /** Those that were welcomed, by the id that the agent gave them. */
  readonly #clients = new Map<bigint, DoorConnection>();
  #unfinishedBytes = 0;
  #draining = false;

  private constructor(
    options: DoorOptions,
    handlers: DoorHandlers,
    parts: { server: Server; folder: SocketFolder; descriptors: DescriptorSocket },
  ) {
    this.#options = options;
    this.#handlers = handlers;
    this.#limits = { ...doorLimits, ...options.limits };
    this.#server = parts.server;
    this.#folder = parts.folder;
    this.#descriptors = parts.descriptors;
    parts.server.on("connection", (socket) => this.#admit(socket));
    parts.server.on("error", handlers.onFault);
  }

  /** Listens. `TB_EXISTS` if another process answers on that path, `TB_FOREIGN` if others can write to its folder. */
  static async open(options: DoorOptions, handlers: DoorHandlers): Promise<Door> {
    const { path, uids, heartbeat } = options;
    const isPrivate = uids.length === 0;
    const folder = SocketFolder.open(path, isPrivate);
    const mode = isPrivate ? 0o600 : 0o666;
    let descriptors: DescriptorSocket | undefined;
    try {
      await folder.clear();
      descriptors = new DescriptorSocket(folder.descriptorsPath, mode, heartbeat);
      const server = await listen(folder.path, mode);
      return new Door(options, handlers, { server, folder, descriptors });
    } catch (error) {
      descriptors?.close();
      folder.close();
      throw error;
    }
  }

  has(client: bigint): boolean {
    return this.#clients.has(client);
  }

  /** Takes no more commands, and says so. */
  retire(): void {
    this.#draining = true;
    for (const client of this.#clients.values()) client.send({ type: "draining" });
  }

  /** Resolves when the commands that were started are answered. */
  async drain(): Promise<void> {
    this.#draining = true;
    for (;;) {
      const running = [...this.#all].flatMap((connection) => connection.running);
      if (running.length === 0) return;
      await Promise.all(running);
    }
  }

  /** Tells clients what concerns their batches. */
  tell(event: AgentEvent): void {
    if (event.kind !== "batchEnded") return;
    const { batch, reason: error } = event;
    for (const client of this.#clients.values()) {
      if (client.knows(batchKey(batch))) client.send({ type: "batchEnded", batch, error });
    }
  }

  async close(): Promise<void> {
    const closed = new Promise<void>((done) => this.#server.close(() => done()));
    for (const connection of this.#all) connection.close();
    await closed;
    this.#descriptors.close();
    this.#folder.close();
  }

  #admit(socket: Socket): void {
    let uid: number;
    try {
      uid = peerOf(socket);
    } catch (error) {
      socket.destroy();
      this.#handlers.onFault(error);
      return;
    }
    const connection = new DoorConnection(this.#host(), socket, uid);
    this.#all.add(connection);
    const refusal = this.#refusal(uid);
    if (refusal === undefined) this.#admitted.add(connection);
    else connection.refuse(refusal);
  }

  #refusal(uid: number): TensorBusError | undefined {
    const own = process.geteuid!();
    const allowed = uid !== overflowUid && (uid === own || this.#options.uids.includes(uid));
    if (!allowed) {
      const message = `user ${uid} may not be a client of the agent of user ${own}: --client-uid allows others`;
      return new TensorBusError("TB_FOREIGN", message, { details: { uid, own } });
    }
    const { connections } = this.#limits;
    if (this.#admitted.size < connections) return undefined;
    return new TensorBusError(
      "TB_QUEUE_FULL",
      `the agent already has ${connections} clients, the most that it takes`,
      {
        details: { capacity: connections },
      },
    );
  }

  #host(): ConnectionHost {
    const { rank, sides, generation, version } = this.#options;
    return {
      rank,
      sides,
      generation,
      version,
      descriptors: this.#descriptors,
      isDraining: () => this.#draining,
      account: (bytes) => {
        this.#unfinishedBytes += bytes;
        return this.#unfinishedBytes <= this.#limits.unfinishedBytes;
      },
      limits: this.#limits,
      run: this.#handlers.run,
      onWelcome: (connection) => this.#clients.set(connection.identity!.id, connection),
      onEnd: (connection) => {
        this.#all.delete(connection);
        this.#admitted.delete(connection);
        const { identity } = connection;
        if (identity !== undefined && this.#clients.delete(identity.id)) this.#handlers.onGone(identity);
      },
    };
  }
}

/** The user at the other end. Node.js does not tell; its socket's descriptor does. */
function peerOf(socket: Socket): number {
  const { fd } = (socket as unknown as { readonly _handle: { readonly fd: number } | null })._handle ?? {};
  if (fd === undefined || fd < 0) {
    throw new TensorBusError("TB_SYSTEM", "a client's socket ended before the agent looked at it");
  }
  return nativeBus.tb_peer_uid(fd);
}

/** The place of the sockets; by way of a descriptor of the folder if their path is too long for the system. */
class SocketFolder {
  /** Both paths in the form that the system takes. */
  readonly path: string;
  readonly descriptorsPath: string;
  readonly #descriptor: number | undefined;
  /** The socket that stands there is this agent's. */
  #owned = false;

  private constructor(path: string, descriptorsPath: string, descriptor: number | undefined) {
    this.path = path;
    this.descriptorsPath = descriptorsPath;
    this.#descriptor = descriptor;
  }

  static open(path: string, isPrivate: boolean): SocketFolder {
    const wanted = resolve(path);
    const folder = isPrivate ? preparePrivateFolder(dirname(wanted)) : dirname(wanted);
    const names = [basename(wanted), descriptorsName(basename(wanted))] as const;
    const fits = names.every((name) => Buffer.byteLength(join(folder, name)) <= maxPathBytes);
    if (fits) return new SocketFolder(join(folder, names[0]), join(folder, names[1]), undefined);
    const descriptor = openSync(folder, constants.O_RDONLY | constants.O_DIRECTORY);
    const short = `/proc/self/fd/${descriptor}`;
    return new SocketFolder(`${short}/${names[0]}`, `${short}/${names[1]}`, descriptor);
  }

  /** Removes what an agent that has ended left. `TB_EXISTS` if one answers. */
  async clear(): Promise<void> {
    if (await answers(this.path)) {
      throw new TensorBusError("TB_EXISTS", `another agent listens on ${this.path}`, {
        details: { path: this.path },
      });
    }
    this.#owned = true;
    this.#remove();
  }

  close(): void {
    if (this.#owned) this.#remove();
    if (this.#descriptor !== undefined) closeSync(this.#descriptor);
  }

  #remove(): void {
    for (const path of [this.path, this.descriptorsPath]) rmSync(path, { force: true });
  }
}

/** `client.fds` beside `client.sock`. */
function descriptorsName(name: string): string {
  return `${name.replace(/\.sock$/, "")}.fds`;
}

function answers(path: string): Promise<boolean> {
  return new Promise((done) => {
    const socket = createConnection({ path });
    socket.once("connect", () => {
      socket.destroy();
      done(true);
    });
    socket.once("error", () => done(false));
  });
}

async function listen(path: string, mode: number): Promise<Server> {
  const server = createServer({ allowHalfOpen: true });
  await new Promise<void>((done, fail) => {
    server.once("error", (cause) => {
      const message = `the socket ${path} cannot be opened: ${cause.message}`;
      const known = explained(cause);
      fail(known !== cause ? known : new TensorBusError("TB_SYSTEM", message, { cause, details: { path } }));
    });
    server.listen({ path }, done);
  });
  chmodSync(path, mode);
  return server;
}
