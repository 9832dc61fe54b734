/** What the compliance suite does not ask of etcd: leases that run out, members that fail, who may come in. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";
import { afterEach, describe, expect, it } from "vitest";
import { type EtcdStoreOptions, etcdStore } from "../../src/store/etcd-store.ts";
import { EtcdMember, etcdMissing } from "./kit/etcd-server.ts";

const one = Buffer.from("1");
const lost = { code: "TB_STORE_LOST" };
const cleanUps: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

async function start(size = 1, extra: readonly string[] = [], scheme = "http"): Promise<EtcdMember[]> {
  const members = await EtcdMember.cluster(size, extra, scheme);
  cleanUps.push(() => Promise.all(members.map((member) => member[Symbol.asyncDispose]())));
  return members;
}

async function connect(members: readonly EtcdMember[], options: Partial<EtcdStoreOptions> = {}) {
  const store = await etcdStore({ endpoints: members.map(({ endpoint }) => endpoint), ...options });
  cleanUps.push(() => store.close());
  return store;
}

async function post(member: EtcdMember, path: string, body: object): Promise<Record<string, unknown>> {
  const response = await fetch(member.endpoint + path, { method: "POST", body: JSON.stringify(body) });
  if (!response.ok) throw new Error(await response.text());
  return (await response.json()) as Record<string, unknown>;
}

async function leases(member: EtcdMember): Promise<string[]> {
  const { leases: all } = await post(member, "/v3/lease/leases", {});
  return ((all ?? []) as { ID: string }[]).map(({ ID }) => ID);
}

describe.skipIf(etcdMissing !== undefined)(
  `etcd${etcdMissing === undefined ? "" : ` (${etcdMissing})`}`,
  () => {
    it("forgets the leased keys of a process that was killed, and no others", async () => {
      const members = await start();
      const store = await connect(members);
      const folder = await mkdtemp(join(tmpdir(), "tensorbus-holder-"));
      cleanUps.push(() => rm(folder, { recursive: true }));
      const outfile = join(folder, "holder.mjs");
      const entry = join(import.meta.dirname, "children/etcd-holder.ts");
      await build({
        entryPoints: [entry],
        outfile,
        bundle: true,
        platform: "node",
        format: "esm",
        logLevel: "error",
      });
      const holder = spawn(process.execPath, [outfile, members[0]!.endpoint, "1"], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      await once(holder.stdout, "data");
      expect(await store.get("held")).toEqual(one);
      holder.kill("SIGKILL");
      await expect.poll(() => store.get("held"), { timeout: 10_000, interval: 100 }).toBeUndefined();
      expect(await store.get("kept")).toEqual(one);
    });

    it("renews a lease for as long as its client lives, and gives it back on closing", async () => {
      const members = await start();
      const store = await connect(members, { leaseSeconds: 2 });
      await Promise.all([store.set("a", one, { leased: true }), store.set("b", one, { leased: true })]);
      const [lease, ...others] = await leases(members[0]!);
      expect(others).toEqual([]);
      const before = await members[0]!.metric("etcd_debugging_lease_renewed_total");
      await expect
        .poll(() => members[0]!.metric("etcd_debugging_lease_renewed_total"))
        .toBeGreaterThan(before + 4);
      expect(await leases(members[0]!)).toEqual([lease]);
      expect(await store.get("a")).toEqual(one);
      await store.close();
      expect(await leases(members[0]!)).toEqual([]);
    });

    it("is lost with its lease", async () => {
      const members = await start();
      const store = await connect(members, { leaseSeconds: 1 });
      await store.set("key", one, { leased: true });
      const waiting = expect(store.wait(["never"])).rejects.toMatchObject(lost);
      const [lease] = await leases(members[0]!);
      await post(members[0]!, "/v3/lease/revoke", { ID: lease });
      await waiting;
      await expect(store.get("key")).rejects.toMatchObject(lost);
      const other = await connect(members);
      expect(await other.get("key")).toBeUndefined();
    });

    it("is lost with its last member, for every call under way and later, for good", async () => {
      const members = await start();
      const store = await connect(members);
      const waiting = expect(store.wait(["never"])).rejects.toMatchObject(lost);
      await store.set("key", one);
      await members[0]!.kill();
      await waiting;
      members[0]!.start();
      for (const call of [store.get("key"), store.set("key", one), store.add("n", 1n), store.delete("key")]) {
        await expect(call).rejects.toMatchObject(lost);
      }
      expect(await (await connect(members)).get("key")).toEqual(one);
    });

    /** Until the living members have a leader again: a change that an election interrupts ends its client. */
    async function electedWithout(member: EtcdMember): Promise<void> {
      for (;;) {
        const probe = await etcdStore({ endpoints: [member.endpoint] });
        const elected = await probe.set("probe", one).then(
          () => true,
          () => false,
        );
        await probe.close();
        if (elected) return;
      }
    }

    it("goes on with another member when one dies or falls silent", async () => {
      const members = await start(3);
      const store = await connect(members, { silenceMs: 3000 });
      await store.set("key", one);
      const waiting = store.wait(["key", "later"]);
      await members[0]!.kill();
      expect(await store.get("key")).toEqual(one);
      members[0]!.start();
      const back = await connect([members[0]!]);
      expect(await back.get("key")).toEqual(one);
      // The next one in use: it lives, and answers nothing.
      members[1]!.signal("SIGSTOP");
      expect(await store.get("key")).toEqual(one);
      await electedWithout(members[0]!);
      await back.set("later", one);
      await waiting;
      members[1]!.signal("SIGCONT");
    });

    it("does not repeat a change that may have been made", async () => {
      // A member that takes the request and dies over it.
      let changes = 0;
      const impostor = createServer((request, response) => {
        if (request.url === "/v3/kv/range") response.end(JSON.stringify({ header: { revision: "1" } }));
        else {
          changes += 1;
          request.socket.destroy();
        }
      });
      await once(impostor.listen(0, "127.0.0.1"), "listening");
      cleanUps.push(async () => impostor.close());
      const { port } = impostor.address() as { port: number };
      const members = await start();
      const endpoints = [`http://127.0.0.1:${port}`, members[0]!.endpoint];
      const store = await etcdStore({ endpoints });
      await expect(store.set("key", one)).rejects.toMatchObject(lost);
      await expect(store.get("key")).rejects.toMatchObject(lost);
      expect(changes).toBe(1);
      await store.close();
      expect(await (await connect(members)).get("key")).toBeUndefined();
    });

    it("says when a value is more than the cluster takes, and goes on", async () => {
      const members = await start(1, ["--max-request-bytes", "10000"]);
      const store = await connect(members);
      for (const bytes of [20_000, 900_000]) {
        await expect(store.set("key", new Uint8Array(bytes))).rejects.toMatchObject({
          code: "TB_STORE_VALUE",
        });
      }
      await store.set("key", new Uint8Array(9000));
    });

    it("says when the cluster is full, and goes on", async () => {
      const members = await start(1, ["--quota-backend-bytes", "100000"]);
      const store = await connect(members);
      const fill = async () => {
        for (let index = 0; index < 400; index += 1) await store.set(`key ${index}`, new Uint8Array(50_000));
      };
      await expect(fill()).rejects.toMatchObject({ code: "TB_NO_SPACE" });
      expect(await store.get("key 0")).toHaveLength(50_000);
    });

    it("waits for more keys than one transaction holds", async () => {
      const members = await start();
      const store = await connect(members);
      const keys = Array.from({ length: 1200 }, (_, index) => `key ${index}`);
      await Promise.all(keys.slice(0, 600).map((key) => store.set(key, one)));
      const waiting = store.wait(keys);
      await Promise.all(keys.slice(600).map((key) => store.set(key, one)));
      await waiting;
    });

    it("hears of keys that came and went while it watched another one", async () => {
      const [member] = await start();
      const store = await connect([member!]);
      const other = await connect([member!]);
      const keys = ["a", "b", "c", "d"];
      const waited = store.wait([...keys, "last"]);
      await expect.poll(() => member!.metric("etcd_debugging_mvcc_watcher_total")).toBe(1);
      for (const key of keys) {
        await other.set(key, one);
        await other.delete(key);
      }
      await other.set("last", one);
      await waited;
    });

    it("looks again when a watch breaks or its revision is gone, and not when it may not watch", async () => {
      const cancelled = { watch_id: "0", canceled: true };
      // undefined: the connection breaks.
      const watches = [
        undefined,
        { ...cancelled, compact_revision: "9" },
        { ...cancelled, cancel_reason: "no" },
      ];
      let looks = 0;
      const impostor = createServer((request, response) => {
        const header = { revision: "7" };
        if (request.url === "/v3/watch") {
          const result = watches[looks - 1];
          if (result === undefined) request.socket.destroy();
          else response.write(`${JSON.stringify({ result })}\n`);
          return;
        }
        if (request.url === "/v3/kv/txn") looks += 1;
        response.end(JSON.stringify({ header, responses: [{ response_range: { header } }] }));
      });
      await once(impostor.listen(0, "127.0.0.1"), "listening");
      cleanUps.push(async () => impostor.close());
      const store = await etcdStore({
        endpoints: [`http://127.0.0.1:${(impostor.address() as { port: number }).port}`],
      });
      await expect(store.wait(["key"])).rejects.toMatchObject({ code: "TB_STORE_PROTOCOL" });
      expect(looks).toBe(3);
      await store.close();
    });

    it("lets in who knows the password, and asks for a new token when the old one has gone", async () => {
      const members = await start();
      await (await connect(members)).close();
      await post(members[0]!, "/v3/auth/user/add", { name: "root", password: "right" });
      await post(members[0]!, "/v3/auth/role/add", { name: "root" });
      await post(members[0]!, "/v3/auth/user/grant", { user: "root", role: "root" });
      await post(members[0]!, "/v3/auth/enable", {});
      const auth = { username: "root", password: "right" };
      const store = await connect(members, { auth });
      await store.set("key", one);
      const wrong = { ...auth, password: "wrong" };
      await expect(connect(members, { auth: wrong })).rejects.toMatchObject({ code: "TB_AUTH" });
      await expect(connect(members)).rejects.toMatchObject({ code: "TB_AUTH" });
      // A member forgets its tokens when it starts anew; a request that it refuses has done nothing.
      await members[0]!.kill();
      members[0]!.start();
      await (await connect(members, { auth })).close();
      expect(await store.get("key")).toEqual(one);
      await store.set("key", Buffer.from("2"));
      await store.wait(["key"]);
    });

    it("speaks TLS, to who it can verify", async () => {
      const members = await start(1, ["--auto-tls"], "https");
      const fixture = join(members[0]!.folder, "data/fixtures/client/cert.pem");
      const ca = await expect
        .poll(() => readFile(fixture, "utf8").catch(() => ""), { timeout: 10_000 })
        .toContain("CERTIFICATE")
        .then(() => readFile(fixture, "utf8"));
      const store = await connect(members, { tls: { ca } });
      await store.set("key", one);
      const waiting = store.wait(["key", "later"]);
      await store.set("later", one);
      await waiting;
      await expect(connect(members, { timeoutMs: 200 })).rejects.toMatchObject({ code: "TB_CONNECT" });
    });

    it("says when nobody answers, or something else does", async () => {
      const [member] = await start();
      await member!.kill();
      await expect(connect([member!], { timeoutMs: 50 })).rejects.toMatchObject({ code: "TB_CONNECT" });
      await expect(etcdStore({ endpoints: [] })).rejects.toMatchObject({ code: "TB_STORE_OPTIONS" });
      const web = createServer((_, response) => response.end("<html>"));
      await once(web.listen(0, "127.0.0.1"), "listening");
      cleanUps.push(async () => web.close());
      const { port } = web.address() as { port: number };
      const store = etcdStore({ endpoints: [`http://127.0.0.1:${port}`] });
      await expect(store).rejects.toMatchObject({ code: "TB_STORE_PROTOCOL" });
    });
  },
);
