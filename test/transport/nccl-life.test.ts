/** What only the nccl transport can be asked, on the doubles of libcuda and libnccl (native/test/doubles). */
import { copyFileSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import koffi from "koffi";
import { afterEach, describe, expect, test } from "vitest";
import { DeviceMesh, Replicate, Shard } from "../../src/layout/index.ts";
import { DeviceMemory, HostMemory } from "../../src/memory/index.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import type { TransportSession } from "../../src/transport/transport.ts";
import { type NcclTransportOptions, nccl } from "../../transports/nccl/index.ts";
import { randomCase, type TransferCase } from "./compliance/cases.ts";
import { columnsToRows } from "./compliance/data.ts";
import { outcomeOf, prepareCase } from "./compliance/world.ts";
import { deviceOf, useDoubles } from "./kit/nccl-doubles.ts";
import { testDevices } from "./kit/test-memory.ts";

useDoubles(4);

const libnccl = process.env["TENSOR_BUS_LIBNCCL"]!;
/** Communicators of this process, as the double counts them. */
const alive = koffi.load(libnccl).func("nccl_double_alive", "uint32_t", []) as () => number;
const allocated = koffi
  .load(process.env["TENSOR_BUS_LIBCUDA"]!)
  .func("cuda_double_allocated", "uint64_t", ["int"]) as (device: number) => bigint | number;

type Store = ReturnType<ReturnType<typeof memoryStores>>;

async function openRank(
  store: Store,
  rank: number,
  options: Partial<NcclTransportOptions> & { readonly world: number; readonly ordinal?: number },
): Promise<TransportSession> {
  const { world, ordinal = rank, ...rest } = options;
  return nccl({ device: deviceOf(ordinal), ...rest }).open({ rank, world, store });
}

/** Tensors of each rank lie on that device, until the test has ended. */
function placeOn(ordinalOf: (rank: number) => number): void {
  testDevices.of = (rank) => deviceOf(ordinalOf(rank));
}
afterEach(() => {
  testDevices.of = deviceOf;
});

async function worldOf(world: number, options: Partial<NcclTransportOptions> = {}) {
  const stores = memoryStores();
  const sessions = await Promise.all(
    Array.from({ length: world }, (_, rank) => openRank(stores(), rank, { world, ...options })),
  );
  return {
    stores,
    sessions,
    async [Symbol.asyncDispose]() {
      await Promise.all(sessions.map((session) => session.close()));
    },
  };
}

describe("communicators", () => {
  test("one for each set of ranks, shared by all that is prepared on it, and gone with its sessions", async () => {
    {
      await using world = await worldOf(3);
      const cases = [columnsToRows(24, 24, {}, [0, 1, 2]), columnsToRows(9, 33, {}, [0, 1, 2])];
      const prepared = await Promise.all(cases.map((transfer) => prepareCase(world.sessions, transfer)));
      expect(alive()).toBe(3);
      for (let round = 0; round < 3; round++) await Promise.all(prepared.map((one) => one.round()));
      await prepareCase(world.sessions, columnsToRows(16, 16, {}, [0, 2]));
      expect(alive()).toBe(5);
    }
    expect(alive()).toBe(0);
  });

  test("a rank that closed ends it for all; opened again, all get another", async () => {
    await using world = await worldOf(3);
    const transfer = columnsToRows(24, 24, {}, [0, 1, 2]);
    const first = await prepareCase(world.sessions, transfer);
    await first.round();
    await world.sessions[2]!.close();
    const lost = { code: "TB_PEER_LOST", rank: 2 };
    expect(await outcomeOf(first.executions[0]!.run())).toEqual(lost);
    await Promise.all(first.executions.slice(0, 2).map((execution) => execution.release()));
    world.sessions[2] = await openRank(world.stores(), 2, { world: 3 });
    const second = await prepareCase(world.sessions, transfer);
    await second.round();
    expect(alive()).toBe(3);
  });

  test("a round that is cancelled while the rank that gives turns releases its transfer ends", async () => {
    await using world = await worldOf(3);
    for (let attempt = 0; attempt < 20; attempt++) {
      const { executions } = await prepareCase(world.sessions, columnsToRows(24, 24, {}, [0, 1, 2]));
      const cancelled = [1, 2].map((rank) => executions[rank]!.run({ signal: AbortSignal.abort() }));
      await executions[0]!.release();
      for (const outcome of await Promise.all(cancelled.map(outcomeOf))) expect(outcome).not.toBe("done");
      await Promise.all([1, 2].map((rank) => executions[rank]!.release()));
    }
  });

  test("two ranks on one device are TB_DEVICE_SHARED, and go on without NCCL", async () => {
    placeOn((rank) => (rank === 2 ? 1 : rank));
    const stores = memoryStores();
    const sessions = await Promise.all(
      [0, 1, 2].map((rank) => openRank(stores(), rank, { world: 3, ordinal: rank === 2 ? 1 : rank })),
    );
    try {
      await expect(prepareCase(sessions, columnsToRows(8, 8, {}, [0, 1, 2]))).rejects.toMatchObject({
        code: "TB_DEVICE_SHARED",
        details: { ranks: [1, 2] },
      });
    } finally {
      await Promise.all(sessions.map((session) => session.close()));
    }
    expect(alive()).toBe(0);
  });

  test("two ranks may share a device where NCCL allows it", async () => {
    placeOn(() => 3);
    const options = { sharedDevices: true };
    const open = () => openRank(memoryStores()(), 0, { world: 1, ...options });
    await expect(open()).rejects.toMatchObject({
      code: "TB_LIBRARY",
      message: expect.stringContaining("NCCL_MULTI_RANK_GPU_ENABLE"),
    });
    process.env["NCCL_MULTI_RANK_GPU_ENABLE"] = "1";
    const stores = memoryStores();
    const sessions = await Promise.all(
      [0, 1].map((rank) => openRank(stores(), rank, { world: 2, ordinal: 3, ...options })),
    );
    try {
      const prepared = await prepareCase(sessions, columnsToRows(16, 16, {}, [0, 1]));
      for (let round = 0; round < 3; round++) await prepared.round();
    } finally {
      delete process.env["NCCL_MULTI_RANK_GPU_ENABLE"];
      await Promise.all(sessions.map((session) => session.close()));
    }
  });
});

describe("a round that one rank is late for", () => {
  /** 0 sends to all others, which exchange nothing among themselves. */
  const star: TransferCase = {
    ...columnsToRows(12, 8, {}, [0, 1, 2, 3]),
    input: {
      pairs: {
        all: {
          source: { mesh: new DeviceMesh([1], { ranks: [0] }), placements: [Replicate()] },
          target: { mesh: new DeviceMesh([3], { ranks: [1, 2, 3] }), placements: [Shard(0)] },
        },
      },
      tensors: [{ name: "matrix", pair: "all", shape: [12, 8], dtype: "float32" }],
    },
  };

  test.each([
    [1, 0],
    [1, 2],
    [3, 2],
    [2, 3],
    [0, 3],
  ])("rank %d is named where rank %d waits too long, whoever stands between the two", async (late, impatient) => {
    await using world = await worldOf(4);
    await using prepared = await prepareCase(world.sessions, star);
    const run = (rank: number, options = {}) => outcomeOf(prepared.executions[rank]!.run(options));
    const there = [0, 1, 2, 3].filter((rank) => rank !== late && rank !== impatient);
    const others = there.map((rank) => run(rank));
    expect(await run(impatient, { timeoutMs: 60 })).toEqual({ code: "TB_TIMEOUT", rank: late });
    await Promise.all(others);
    expect(await run(late)).toMatchObject({ code: "TB_CANCELLED" });
    await prepared.round();
  });
});

describe("what is not there", () => {
  const open = (options: Partial<NcclTransportOptions>) =>
    openRank(memoryStores()(), 0, { world: 1, ...options });

  test("a library that is missing, or too old, is TB_LIBRARY with both versions", async () => {
    await expect(open({ library: "libno-such-nccl.so" })).rejects.toMatchObject({ code: "TB_LIBRARY" });
    const folder = mkdtempSync(join(tmpdir(), "tensorbus-nccl-"));
    // A library is asked for its version once: this one is another.
    for (const name of ["libnccl.so", "libcuda.so"])
      copyFileSync(join(libnccl, "..", name), join(folder, name));
    process.env["NCCL_DOUBLE_VERSION"] = "21505";
    try {
      await expect(open({ library: join(folder, "libnccl.so") })).rejects.toMatchObject({
        code: "TB_LIBRARY",
        message: expect.stringMatching(/is NCCL 2\.15\.5; 2\.18 or newer is needed/),
      });
    } finally {
      delete process.env["NCCL_DOUBLE_VERSION"];
      rmSync(folder, { recursive: true });
    }
  });

  test("a device that is none of this machine's is TB_DEVICE, and what is no UUID, too", async () => {
    const elsewhere = "GPU-00000000-0000-0000-0000-000000000001";
    await expect(open({ device: elsewhere })).rejects.toMatchObject({
      code: "TB_DEVICE",
      message: expect.stringContaining(elsewhere),
    });
    await expect(open({ device: "0" })).rejects.toMatchObject({ code: "TB_DEVICE" });
  });

  test("memory of the host, or of another device, is not for it", async () => {
    const session = await nccl({ device: deviceOf(0) }).open({
      rank: 0,
      world: 1,
      store: memoryStores()(),
    });
    expect(() => session.register(HostMemory.allocate(64))).toThrow(
      expect.objectContaining({ code: "TB_UNSUPPORTED" }),
    );
    const elsewhere = DeviceMemory.allocate(deviceOf(1), 64);
    expect(() => session.register(elsewhere)).toThrow(expect.objectContaining({ code: "TB_REGION" }));
    elsewhere.close();
    await session.close();
  });
});

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

/**
 * What sessions had is given back once nothing of the process is under way, which may be after they have closed; tensors of
 * transfers that could not be prepared, once they are collected.
 */
async function allGivenBack(): Promise<void> {
  const taken = () => {
    collect();
    return [0, 1, 2, 3].map((device) => Number(allocated(device)));
  };
  await expect.poll(taken).toEqual([0, 0, 0, 0]);
}

test("a thousand rounds take no more memory than the first", async () => {
  await allGivenBack();
  await using world = await worldOf(2);
  await using prepared = await prepareCase(
    world.sessions,
    columnsToRows(32, 32, { bucketBytes: 4096 }, [0, 1]),
  );
  const run = () => Promise.all(prepared.executions.slice(0, 2).map((execution) => execution.run()));
  const measure = () => [Number(allocated(0)), Number(allocated(1)), alive()];
  for (let round = 0; round < 200; round++) await run();
  collect();
  const [before, resident] = [measure(), process.memoryUsage().rss];
  for (let round = 0; round < 1000; round++) await run();
  collect();
  expect(measure()).toEqual(before);
  expect(process.memoryUsage().rss - resident).toBeLessThan(48 * 2 ** 20);
});

test("staging that was announced is what it takes of the device", async () => {
  await allGivenBack();
  await using world = await worldOf(4);
  const session = world.sessions[1]!;
  for (const [seed, partial] of [
    [5, undefined],
    [6, "sum"],
  ] as const) {
    const transfer = { ...randomCase(seed, partial === undefined ? {} : { partial }), world: 4 };
    const within = Object.values(transfer.input.pairs).every(({ source, target }) =>
      [...source.mesh.ranks, ...target.mesh.ranks].every((rank) => rank < 4),
    );
    if (!within) continue;
    const before = Number(allocated(1));
    const prepared = await prepareCase(world.sessions, transfer);
    expect(session.rank).toBe(1);
    expect(Number(allocated(1)) - before).toBeGreaterThanOrEqual(
      Number(prepared.executions[1]!.stats.stagingBytes),
    );
    await prepared[Symbol.asyncDispose]();
  }
});
