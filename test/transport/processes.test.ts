import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { serveTcpStore } from "../../src/store/index.ts";
import { bundleChild, type ChildRank, startRanks } from "./children.ts";

describe("tcp: ranks in processes of their own", () => {
  let bundle: Awaited<ReturnType<typeof bundleChild>>;
  beforeAll(async () => {
    bundle = await bundleChild("rank");
  });
  afterAll(() => bundle.remove());

  const within = async (peerTimeoutMs: number, body: (ranks: readonly ChildRank[]) => Promise<void>) => {
    await using store = await serveTcpStore();
    const ranks = await startRanks(bundle.file, { world: 3, peerTimeoutMs, storePort: store.port });
    try {
      await body(ranks);
    } finally {
      for (const child of ranks) child.end();
    }
  };
  const post = async (child: ChildRank) => (await child.ask({ kind: "post" }, "round")).outcome;
  const lost = { code: "TB_PEER_LOST", rank: 2 };

  test("a killed one is a lost peer to all others, at once", () =>
    within(600_000, async (ranks) => {
      expect(await Promise.all(ranks.map(post))).toEqual(["done", "done", "done"]);
      const rounds = ranks.slice(0, 2).map(post);
      ranks[2]!.process.kill("SIGKILL");
      expect(await Promise.all(rounds)).toEqual([lost, lost]);
      expect(await post(ranks[0]!)).toEqual(lost);
    }));

  test("one that is silent is lost after the peer timeout", () =>
    within(300, async (ranks) => {
      ranks[2]!.process.kill("SIGSTOP");
      expect(await Promise.all(ranks.slice(0, 2).map(post))).toEqual([lost, lost]);
    }));
});

test("an idle session lets its program end, an awaited operation does not", async () => {
  const bundle = await bundleChild("idle");
  try {
    const { stdout } = await promisify(execFile)(process.execPath, [bundle.file]);
    expect(stdout).toBe("TB_TIMEOUT\n");
  } finally {
    bundle.remove();
  }
});
