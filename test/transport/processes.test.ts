import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { describe, expect, test } from "vitest";
import { serveTcpStore } from "../../src/store/index.ts";
import { useCudaDouble } from "../doubles/cuda/index.ts";
import type { SeededCase } from "./children/rank.ts";
import { castTypes } from "./compliance/cases.ts";
import { bundleChild, ChildRank, startRanks } from "./kit/children.ts";
import { ucxVersion } from "./kit/ucx.ts";

useCudaDouble(); // cuda-ipc runs on a test double of libcuda

const program = bundleChild("rank");

const ofUcx =
  ucxVersion === undefined
    ? []
    : ([
        ["ucx", "host"],
        ["ucx by shared memory", "shared"],
      ] as const);

describe.each([
  ["tcp", "host"],
  ["shm", "host"],
  ["shm", "shared"],
  ["cuda-ipc", "cuda"],
  ...ofUcx,
] as const)("%s: ranks in processes of their own, %s memory", (transport, memory) => {
  const within = async (peerTimeoutMs: number, body: (ranks: readonly ChildRank[]) => Promise<void>) => {
    await using store = await serveTcpStore();
    const setup = { world: 3, peerTimeoutMs, storePort: store.port, transport, memory };
    const ranks = await startRanks(program, setup);
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

test.each([
  ["shm", "host"],
  ["shm", "shared"],
  ["cuda-ipc", "cuda"],
  ...ofUcx,
] as const)("%s: every byte arrives from processes, %s memory", async (transport, memory) => {
  await using store = await serveTcpStore();
  const cases: SeededCase[] = [
    { seed: 900, options: { strided: false } },
    { seed: 901, options: { strided: true } },
    { seed: 902, options: { types: castTypes, tensors: 4 } },
    { seed: 903, options: { partial: "sum", options: { bucketsInFlight: 1, peersInFlight: 1 } } },
    {
      seed: 904,
      options: { partial: "avg", types: castTypes.slice(0, 4), options: { strategy: "striped" } },
    },
    { seed: 905, options: { options: { strategy: "striped" } } },
  ];
  const ranks = Array.from({ length: 6 }, () => new ChildRank(program));
  try {
    const setup = {
      world: 6,
      storePort: store.port,
      peerTimeoutMs: 60_000,
      transport,
      memory,
    } as const;
    const ran = ranks.map((child, rank) => child.ask({ kind: "cases", rank, cases, ...setup }, "ran"));
    expect((await Promise.all(ran)).map((answer) => answer.cases)).toEqual(ranks.map(() => cases.length));
  } finally {
    for (const child of ranks) child.end();
  }
});

test("an idle session lets its program end, an awaited operation does not", async () => {
  const { stdout } = await promisify(execFile)(process.execPath, [bundleChild("idle")]);
  expect(stdout).toBe("TB_TIMEOUT\n");
});
