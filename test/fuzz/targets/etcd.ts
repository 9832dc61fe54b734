/** An etcd that answers anything. */
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { etcdStore } from "../../../src/store/etcd-store.ts";
import { inTime, refusing, type Target } from "../kit/target.ts";

const json = (value: unknown) => Buffer.from(JSON.stringify(value));
const kv = {
  key: "L3gvaw==",
  value: "MQ==",
  create_revision: "3",
  mod_revision: "7",
  version: "1",
  lease: "5",
};

export const etcd: Target = {
  seeds: () => [
    json({ header: { revision: "12" }, kvs: [kv], count: "1" }),
    json({
      header: { revision: "12" },
      succeeded: true,
      responses: [{ response_range: { kvs: [kv], count: "1" } }],
    }),
    json({ header: { revision: "12" }, responses: [{ response_range: {} }] }),
    json({ result: { created: true, events: [{ kv }], compact_revision: "3", canceled: true, TTL: "10" } }),
    json({ ID: "77", TTL: "10", deleted: "1" }),
    json({ error: "x", code: 5, message: "requested lease not found" }),
  ],
  async run(input) {
    let greeted = false;
    const server = createServer((request, response) => {
      request.resume().on("end", () => {
        response.statusCode = greeted && input.length % 5 === 0 ? 400 : 200;
        response.end(greeted ? input : "{}");
      });
    });
    await once(server.listen(0, "127.0.0.1"), "listening");
    const { port } = server.address() as AddressInfo;
    const endpoints = [`http://127.0.0.1:${port}`];
    try {
      const store = await etcdStore({ endpoints, timeoutMs: 2000, silenceMs: 1000 });
      greeted = true;
      const options = { timeoutMs: 100 };
      const one = Buffer.of(1);
      for (const call of [
        () => store.get("k", options),
        () => store.set("k", one, { ...options, leased: true }),
        () => store.compareAndSet("k", one, one, options),
        () => store.add("k", 1n, options),
        () => store.wait(["k"], options),
        () => store.delete("k", options),
      ]) {
        await inTime(5000, "a call", refusing(call));
      }
      await inTime(5000, "closing", store.close());
    } finally {
      server.closeAllConnections();
      server.close();
    }
  },
};
