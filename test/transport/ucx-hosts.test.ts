/** Ranks in network namespaces of their own, as on two hosts: UCX has nothing between them but the network. */
import { type ChildProcess, execFileSync, fork, spawnSync } from "node:child_process";
import { once } from "node:events";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { serveTcpStore } from "../../src/store/index.ts";
import type { OneToOneSetup } from "./children/one-to-one.ts";
import { bundleChild } from "./kit/children.ts";
import { ucxVersion } from "./kit/ucx.ts";

const id = process.pid % 65_536;
const other = `tensorbus-${id}`;
const links = [`tb${id}a`, `tb${id}b`] as const;
/** A network of this test alone, of those that are for measuring. */
const hosts = [`198.18.${id % 256}.1`, `198.18.${id % 256}.2`] as const;

const ip = (...parameters: string[]) => execFileSync("ip", parameters, { stdio: "ignore" });
const allowed = spawnSync("ip", ["netns", "add", other], { stdio: "ignore" }).status === 0;
if (!allowed)
  console.warn("tests of ucx between network namespaces are skipped: `ip netns add` is not allowed");
afterAll(() => {
  if (allowed) ip("netns", "del", other); // takes both ends of the link with it
});

describe.skipIf(!allowed || ucxVersion === undefined)("UCX between network namespaces", () => {
  beforeAll(async () => {
    ip("link", "add", links[0], "type", "veth", "peer", "name", links[1], "netns", other);
    ip("addr", "add", `${hosts[0]}/24`, "dev", links[0]);
    ip("link", "set", links[0], "up");
    ip("-n", other, "addr", "add", `${hosts[1]}/24`, "dev", links[1]);
    ip("-n", other, "link", "set", links[1], "up");
  });

  const start = (rank: 0 | 1): ChildProcess => {
    const env = { ...process.env, UCX_NET_DEVICES: links[rank] };
    const within = { execPath: "ip", execArgv: ["netns", "exec", other, process.execPath] };
    return fork(bundleChild("one-to-one"), { stdio: "inherit", env, ...(rank === 0 ? {} : within) });
  };
  const ask = async (child: ChildProcess, message: OneToOneSetup | { kind: "post" }) => {
    child.send(message);
    return (await once(child, "message"))[0];
  };

  test("every byte arrives; one that is killed is a lost peer", async () => {
    await using store = await serveTcpStore({ host: hosts[0] });
    const children = [start(0), start(1)] as const;
    try {
      const ready = children.map((child, rank) =>
        ask(child, {
          kind: "prepare",
          rank,
          store: { host: hosts[0], port: store.port },
          bytes: 8 * 2 ** 20,
          value: 7,
          options: { host: hosts[rank]!, secret: "a secret of the tests", transports: "tcp,self" },
        }),
      );
      expect(await Promise.all(ready)).toEqual(["prepared", "prepared"]);
      const round = children.map((child) => ask(child, { kind: "post" }));
      expect(await Promise.all(round)).toEqual(["done", "done"]);
      const left = ask(children[1], { kind: "post" });
      children[0].kill("SIGKILL");
      expect(await left).toBe("TB_PEER_LOST");
    } finally {
      for (const child of children) child.kill("SIGKILL");
    }
  });
});
