import { createServer, type Server, type Socket, connect as tcpConnect } from "node:net";
import { memoryStores } from "../../../src/store/memory-store.ts";
import type { Store } from "../../../src/store/store.ts";
import type { NativeSession } from "../../../src/transport/native-session.ts";
import { addressKey, type DirectoryScope, encodeAddress } from "../../../src/transport/peer-directory.ts";
import type { TransportSession } from "../../../src/transport/transport.ts";
import { type TcpTransportOptions, tcp } from "../../../transports/tcp/index.ts";
import type { World } from "../compliance/world.ts";

/** Sessions of all ranks in this process, each with options of its own. */
export async function openTcp(
  world: number,
  options: (rank: number) => TcpTransportOptions = () => ({}),
): Promise<World> {
  const stores = memoryStores();
  const sessions: TransportSession[] = [];
  for (let rank = 0; rank < world; rank++) {
    sessions.push(await tcp(options(rank)).open({ rank, world, store: stores() }));
  }
  return {
    sessions,
    async [Symbol.asyncDispose]() {
      for (const session of sessions) await session.close();
    },
  };
}

export function portOf(session: TransportSession): number {
  return (session as NativeSession).port;
}

/** A store in which others stand where we say, signed with our secret: what a rank would see that trusts a wrong peer. */
export async function storeSaying(
  addresses: Readonly<Record<number, number>>,
  secret = "",
  namespace?: string,
): Promise<Store> {
  const store = memoryStores()();
  const scope: DirectoryScope = {
    transport: "tcp",
    namespace: namespace ?? store.namespace,
    generation: 0n,
    secrets: [Buffer.from(secret)],
  };
  for (const [rank, port] of Object.entries(addresses)) {
    await store.set(
      addressKey(scope, Number(rank)),
      encodeAddress(scope, Number(rank), { host: "127.0.0.1", port }),
    );
  }
  return store;
}

/** The same store, and a promise that resolves once something was read of it. */
export function watchReads(store: Store): { readonly watched: Store; readonly read: Promise<void> } {
  let seen: () => void;
  const read = new Promise<void>((resolve) => {
    seen = resolve;
  });
  const watched = new Proxy(store, {
    get(target, name) {
      const member: unknown = Reflect.get(target, name, target);
      if (typeof member !== "function") return member;
      return async (...args: unknown[]) => {
        const result: unknown = await member.apply(target, args);
        if (name === "get") seen();
        return result;
      };
    },
  });
  return { watched, read };
}

interface Listener extends AsyncDisposable {
  readonly port: number;
}

/** Listens on a free port, and hands every connection to `serve`. */
export async function listen(serve: (socket: Socket) => void): Promise<Listener> {
  const sockets = new Set<Socket>();
  const server: Server = createServer((socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    socket.on("error", () => socket.destroy());
    serve(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  if (address === null || typeof address === "string") throw new TypeError("no port");
  return {
    port: address.port,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** Changes bytes of one direction of a connection in place, as they pass. */
export type Change = (bytes: Buffer) => void;

/** The byte at that place arrives with one bit turned. */
export function flipAt(place: number): Change {
  let passed = 0;
  return (bytes) => {
    const at = place - passed;
    if (at >= 0 && at < bytes.length) bytes[at] = bytes[at]! ^ 4;
    passed += bytes.length;
  };
}

/** Buckets of that size arrive as if they were their neighbours: 0 as 1, 1 as 0 (`docs/wire-protocol.md`, DATA). */
export function exchangeBuckets(bucketBytes: number): Change {
  const headerBytes = { beforeSequence: 32, bodyBytes: 24 };
  const before = Buffer.alloc(headerBytes.beforeSequence);
  return (bytes) => {
    for (let at = 0; at < bytes.length; at++) {
      const isData = before[0] === 9 && before.subarray(2, 8).every((byte) => byte === 0);
      const isSequence = isData && before.readBigUInt64LE(headerBytes.bodyBytes) === BigInt(bucketBytes);
      if (isSequence) bytes[at] = bytes[at]! ^ 1;
      before.copyWithin(0, 1);
      before[before.length - 1] = bytes[at]!;
    }
  };
}

/** Passes every connection on to `target()`, both directions changed. */
export function corruptingProxy(target: () => number, change: () => Change): Promise<Listener> {
  return listen((socket) => {
    const upstream = tcpConnect(target(), "127.0.0.1");
    upstream.on("error", () => socket.destroy());
    for (const [from, to] of [
      [socket, upstream],
      [upstream, socket],
    ] as const) {
      const changed = change();
      from.on("data", (bytes: Buffer) => {
        changed(bytes);
        to.write(bytes);
      });
      from.on("close", () => to.destroy());
    }
  });
}

/** Sends bytes to a port, and resolves with what came back once the other side has ended the connection. */
export function sendTo(port: number, bytes: Uint8Array): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const received: Buffer[] = [];
    const socket = tcpConnect(port, "127.0.0.1", () => socket.write(bytes));
    socket.on("data", (chunk) => received.push(chunk));
    socket.on("close", () => resolve(Buffer.concat(received)));
    socket.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code !== "ECONNRESET") reject(error);
    });
  });
}

/** The first bytes of a connection, as far as a stranger can make them up: `docs/wire-protocol.md`. */
export function hello({ version = 3, from = 1, to = 0, world = 2 }: Record<string, number> = {}): Buffer {
  const bytes = Buffer.alloc(128);
  bytes.write("TENSORBS", 0, "latin1");
  bytes.writeUInt32LE(version, 8);
  bytes.writeUInt32LE(40, 12);
  bytes.writeInt32LE(from, 16);
  bytes.writeInt32LE(to, 20);
  bytes.writeInt32LE(world, 24);
  bytes.writeUInt32LE(1, 28);
  return bytes;
}
