import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openStore } from "../../src/store/open-store.ts";
import { serveTcpStore, type TcpStoreServer } from "../../src/store/tcp-server.ts";
import { tcpStore } from "../../src/store/tcp-store.ts";
import { EtcdMember, etcdMissing } from "./kit/etcd-server.ts";

const value = Buffer.from("value");
const oneSecret = "a secret of the tests, one";
const otherSecret = "a secret of the tests, two";
const options = expect.objectContaining({ code: "TB_STORE_OPTIONS" });

describe("openStore", () => {
  let server: TcpStoreServer;
  let url: string;
  let folder: string;
  beforeAll(async () => {
    server = await serveTcpStore();
    url = `tcp://127.0.0.1:${server.port}`;
    folder = await mkdtemp(join(tmpdir(), "tensorbus-store-"));
  });
  afterAll(async () => {
    await server.close();
    await rm(folder, { recursive: true });
  });

  it("finds store, namespace and secret in the environment, unless told", async () => {
    const env = { TENSOR_BUS_STORE: url, TENSOR_BUS_NAMESPACE: "job", TENSOR_BUS_SECRET: oneSecret };
    await using opened = await openStore(undefined, { env });
    expect([opened.store.name, opened.store.namespace, opened.server]).toEqual([
      "signed tcp",
      "job",
      undefined,
    ]);
    await opened.store.set("key", value);
    await using told = await openStore(url, { env, namespace: "other", secrets: [] });
    expect([told.store.name, told.store.namespace]).toEqual(["tcp", "other"]);
    await using plain = await openStore(url, { env: {} });
    expect([plain.store.name, plain.store.namespace]).toEqual(["tcp", "tensorbus"]);
    await using raw = await tcpStore({ host: "127.0.0.1", port: server.port, namespace: "job" });
    expect((await raw.get("key"))!.length).toBeGreaterThan(value.length);
  });

  it("reads one secret a line, the first of which signs", async () => {
    const file = join(folder, "secrets");
    await writeFile(file, `${otherSecret}\n  ${oneSecret}  \n\n`);
    const env = { TENSOR_BUS_STORE: url, TENSOR_BUS_SECRET_FILE: file };
    await using rotating = await openStore(undefined, { env });
    await using before = await openStore(url, { env: { TENSOR_BUS_SECRET: oneSecret } });
    await using after = await openStore(url, { env: { TENSOR_BUS_SECRET: otherSecret } });
    await before.store.set("of one", value);
    await rotating.store.set("of rotating", value);
    expect(await rotating.store.get("of one")).toEqual(value);
    expect(await before.store.get("of rotating")).toBeUndefined();
    expect(await after.store.get("of rotating")).toEqual(value);
  });

  it("does not go on unsigned where a secret was meant", async () => {
    const file = join(folder, "empty");
    await writeFile(file, "\n");
    await expect(openStore(url, { env: { TENSOR_BUS_SECRET_FILE: file } })).rejects.toEqual(options);
    const missing = { TENSOR_BUS_SECRET_FILE: join(folder, "missing") };
    await expect(openStore(url, { env: missing })).rejects.toMatchObject({ code: "TB_FILE" });
    await expect(openStore(url, { env: { TENSOR_BUS_SECRET: "short" } })).rejects.toEqual(options);
    await expect(openStore(url, { env: { TENSOR_BUS_SECRET: "  " } })).rejects.toEqual(options);
    await expect.poll(() => server.stats.connections).toBe(0);
  });

  it("serves where it is told to, and closes what it serves", async () => {
    const opened = await openStore("tcp://127.0.0.1:0?serve", { env: {} });
    const { port } = opened.server!;
    await using other = await openStore(`tcp://127.0.0.1:${port}`, { env: {} });
    await other.store.set("key", value);
    expect(await opened.store.get("key")).toEqual(value);
    await expect(openStore(`tcp://127.0.0.1:${port}?serve`, { env: {} })).rejects.toMatchObject({
      code: "TB_ADDRESS_IN_USE",
    });
    await using told = await openStore(`tcp://127.0.0.1:${port}?serve`, { env: {}, serve: false });
    expect(told.server).toBeUndefined();
    await opened.close();
    await expect(other.store.get("key")).rejects.toMatchObject({ code: "TB_STORE_LOST" });
    await expect(openStore(`tcp://127.0.0.1:${port}`, { env: {}, timeoutMs: 50 })).rejects.toMatchObject({
      code: "TB_CONNECT",
    });
    await using wide = await openStore("tcp://localhost:0", {
      env: { TENSOR_BUS_SECRET: oneSecret },
      serve: { host: "::", maxMemoryBytes: 2 ** 20 },
    });
    expect(wide.server!.host).toBe("::");
  });

  it.each([
    ["tcp://0.0.0.0:0?serve", undefined],
    ["tcp://192.0.2.1:0?serve", undefined],
    ["tcp://trainer.example:0?serve", undefined],
    ["tcp://127.0.0.1:0", { host: "0.0.0.0" }],
    ["tcp://127.0.0.1:0", { host: "::" }],
  ])("serves no strangers without a secret: %s %o", async (address, serve) => {
    const refused = openStore(address, { env: {}, ...(serve && { serve }) });
    await expect(refused).rejects.toMatchObject({
      code: "TB_STORE_OPTIONS",
      message: expect.stringMatching(/needs a secret/),
    });
  });

  it.each([
    "",
    "tcp://host",
    "tcp://host:99999",
    "tcp://a:1,b:2",
    "tcp://user:secret@host:1",
    "http://host:1",
    "etcd://host:1?serve",
    "etcd://host:1,",
    "tcp://::1:80",
    "tcp://host:1/path",
  ])("refuses %j, without repeating it", async (wrong) => {
    const refused = openStore(wrong, { env: {} });
    await expect(refused).rejects.toEqual(options);
    await expect(refused).rejects.not.toThrow(/secret/);
  });

  it("takes brackets around addresses of IPv6, and serves only tcp", async () => {
    const ended = { env: {}, timeoutMs: 30 };
    await expect(openStore("tcp://[::1]:1", ended)).rejects.toMatchObject({ code: "TB_CONNECT" });
    await expect(openStore("etcd://[::1]:1,127.0.0.1:1", ended)).rejects.toMatchObject({
      code: "TB_CONNECT",
    });
    await expect(openStore("etcds://127.0.0.1:1", ended)).rejects.toMatchObject({ code: "TB_CONNECT" });
    await expect(openStore("etcd://127.0.0.1:1", { env: {}, serve: true })).rejects.toEqual(options);
  });

  it.skipIf(etcdMissing !== undefined)(
    `opens etcd${etcdMissing === undefined ? "" : ` (${etcdMissing})`}`,
    async () => {
      await using member = await EtcdMember.single();
      const { host } = new URL(member.endpoint);
      await using opened = await openStore(`etcd://127.0.0.1:1,${host}`, {
        env: {},
        etcd: { leaseSeconds: 5 },
      });
      await opened.store.set("key", value, { leased: true });
      expect(await opened.store.get("key")).toEqual(value);
    },
  );
});
