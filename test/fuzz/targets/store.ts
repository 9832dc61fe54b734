/** A store's server with clients that say anything, and its client with servers that do. */
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { createServer, type Server } from "node:net";
import { frames } from "../../../src/store/tcp-protocol.ts";
import { serveTcpStore, type TcpStoreServer } from "../../../src/store/tcp-server.ts";
import { tcpStore } from "../../../src/store/tcp-store.ts";
import {
  converse,
  counted,
  dial,
  gone,
  list,
  number,
  ping,
  request,
  validate,
} from "../../store/kit/wire.ts";
import { inTime, refusing, type Target } from "../kit/target.ts";

const key = Buffer.from("/key");
const value = Buffer.from("value");
let server: TcpStoreServer | undefined;

export const storeServer: Target = {
  seeds: () => [
    Buffer.concat([
      validate,
      ping(1),
      frames.set(key, value),
      frames.add(Buffer.from("/count"), 3n),
      request("append", counted("/key"), counted("more")),
      request("multiGet", list(["/key", "/none"])),
      request("multiSet", number(2), counted("/a"), counted("1"), counted("/b"), counted("2")),
      frames.compareSet(key, value, Buffer.from("2")),
      request("queuePush", counted("/q"), counted("1")),
      request("queuePop", counted("/q")),
      request("listKeys"),
      frames.check([key]),
      frames.wait([key]),
      request("cancelWait"),
      request("barrier", counted("/bar"), number(1)),
      frames.deleteKey(key),
      ping(2),
    ]),
  ],
  async run(input) {
    server ??= await serveTcpStore({ maxMemoryBytes: 2 ** 24, maxRequestBytes: 2 ** 20 });
    const socket = await dial(server.port, new Uint8Array());
    socket.end(input);
    await inTime(5000, "the end of a connection", gone(socket));
    // Everybody else is served as before.
    const answer = await inTime(5000, "an answer to somebody else", converse(server.port));
    if (answer === undefined) throw new Error("somebody else was not answered");
    if (server.stats.memoryBytes > 2 ** 24) throw new Error("more memory is held than may be");
  },
  async close() {
    await server?.close();
    server = undefined;
  },
};

/** Answers everything by the same bytes, once it has greeted. */
async function impostor(bytes: Uint8Array): Promise<Server> {
  const listener = createServer((socket) => {
    socket.on("error", () => {});
    socket.on("data", (chunk: Buffer) => {
      socket.write(chunk[0] === 0 ? chunk.subarray(-4) : bytes);
      if (chunk[0] !== 0) socket.end();
    });
  });
  await once(listener.listen(0, "127.0.0.1"), "listening");
  return listener;
}

export const storeClient: Target = {
  seeds: () => [
    counted("value"),
    number(1),
    Buffer.of(0, 1),
    ping(7).subarray(1),
    counted(Buffer.alloc(300)),
  ],
  async run(input) {
    const listener = await impostor(input);
    const { port } = listener.address() as AddressInfo;
    const connect = () => tcpStore({ host: "127.0.0.1", port, timeoutMs: 1000, silenceMs: 500 });
    try {
      for (const call of [
        async () => (await connect()).get("key"),
        async () => (await connect()).add("key", 1n),
        async () => (await connect()).compareAndSet("key", undefined, value),
        async () => (await connect()).wait(["key"], { timeoutMs: 50 }),
      ]) {
        await inTime(5000, "a call", refusing(call));
      }
    } finally {
      listener.close();
    }
  },
};
