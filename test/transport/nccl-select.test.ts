/** Which pairs of ranks take nccl, and rounds in which some do, on the doubles of libcuda and libnccl (native/test/doubles). */
import { copyFileSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import koffi from "koffi";
import { afterEach, describe, expect, test } from "vitest";
import { DeviceMesh, Partial, Replicate, Shard } from "../../src/layout/index.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import type { Store } from "../../src/store/store.ts";
import { addressKey } from "../../src/transport/peer-directory.ts";
import { select } from "../../src/transport/selection.ts";
import type { TransportSession } from "../../src/transport/transport.ts";
import { cudaIpc } from "../../transports/cuda-ipc/index.ts";
import { type NcclTransportOptions, nccl } from "../../transports/nccl/index.ts";
import { tcp } from "../../transports/tcp/index.ts";
import { freePort } from "../kit/free-ports.ts";
import { Random } from "../kit/random.ts";
import { randomCase, type TransferCase } from "./compliance/cases.ts";
import { columnsToRows } from "./compliance/data.ts";
import { outcomeOf, type PreparedCase, prepareCase } from "./compliance/world.ts";
import { deviceOf, useDoubles } from "./kit/nccl-doubles.ts";
import { testDevices } from "./kit/test-memory.ts";

useDoubles(16);

const libnccl = process.env["TENSOR_BUS_LIBNCCL"]!;
/** Communicators of this process, as the double counts them. */
const alive = koffi.load(libnccl).func("nccl_double_alive", "uint32_t", []) as () => number;

/** What a rank offers: all that a GPU has, NCCL alone as one on another host would, or no NCCL. */
type Offer = "both" | "nccl" | "cuda-ipc";
interface RankOptions extends Omit<NcclTransportOptions, "device"> {
  readonly ordinal?: number;
}

function transportOf(offer: Offer, rank: number, { ordinal = rank, ...rest }: RankOptions = {}) {
  const device = deviceOf(ordinal);
  // All meet as tcp does.
  const meeting = { ...(rest.port === undefined ? {} : { port: rest.port }) };
  const all = [
    ...(offer === "nccl" ? [] : [cudaIpc({ device })]),
    ...(offer === "cuda-ipc" ? [] : [nccl({ device, ...rest })]),
    tcp(meeting),
  ];
  return select([all.at(-1)!, ...all.slice(0, -1)]);
}

async function openEach(offers: readonly Offer[], options: (rank: number) => RankOptions = () => ({})) {
  const stores = memoryStores();
  const sessions: TransportSession[] = [];
  const open = (rank: number, offer = offers[rank]!) =>
    transportOf(offer, rank, options(rank)).open({ rank, world: offers.length, store: stores() });
  for (const rank of offers.keys()) sessions.push(await open(rank));
  testDevices.of = (rank) => deviceOf(options(rank).ordinal ?? rank);
  return {
    sessions,
    stores,
    open,
    async [Symbol.asyncDispose]() {
      await Promise.all(sessions.map((session) => session.close()));
    },
  };
}
afterEach(() => {
  testDevices.of = deviceOf;
});

const prepareOnGpu = (
  sessions: readonly TransportSession[],
  transfer: TransferCase,
  options: { readonly timeoutMs?: number } = {},
) => prepareCase(sessions, transfer, { memory: () => "cuda", ...options });

/** Each rank's transports by peer, as its statistics say them. */
const waysOf = ({ executions }: PreparedCase) =>
  executions.map(({ stats }) =>
    Object.fromEntries([...stats.peers].map(([rank, { transport }]) => [rank, transport])),
  );

/** One small matrix from some ranks to others. */
function matrix(world: number, source: readonly [number[], object], target: readonly [number[], object]) {
  const side = ([ranks, placement]: readonly [number[], object]) => ({
    mesh: new DeviceMesh([ranks.length], { ranks }),
    placements: [placement as ReturnType<typeof Replicate>],
  });
  const transfer: TransferCase = {
    ...columnsToRows(8, 8),
    world,
    input: {
      pairs: { all: { source: side(source), target: side(target) } },
      tensors: [{ name: "matrix", pair: "all", shape: [8, 8], dtype: "float32" }],
    },
  };
  return transfer;
}

describe("which pairs", () => {
  test("cuda-ipc where both are on one host and offer it, else nccl; both ends say the same", async () => {
    await using world = await openEach(["both", "both", "nccl", "cuda-ipc"]);
    const prepared = await prepareOnGpu(world.sessions, columnsToRows(24, 24, {}, [0, 1, 2]));
    expect(waysOf(prepared)).toEqual([
      { 1: "cuda-ipc", 2: "nccl" },
      { 0: "cuda-ipc", 2: "nccl" },
      { 0: "nccl", 1: "nccl" },
      {},
    ]);
    for (let round = 0; round < 3; round++) await prepared.round();
    expect(alive()).toBe(3);
  });

  test("where no pair takes nccl there is no communicator, and only who needs one is of it", async () => {
    await using world = await openEach(["both", "both", "nccl", "both"]);
    const near = await prepareOnGpu(world.sessions, columnsToRows(24, 24, {}, [0, 1, 3]));
    await near.round();
    expect(alive()).toBe(0);
    // 3 deals with 0 alone, 2 too: who meet by NCCL are 0 and 2.
    const star = await prepareOnGpu(world.sessions, matrix(4, [[0], Replicate()], [[3, 2], Shard(0)]));
    expect(waysOf(star)).toEqual([{ 2: "nccl", 3: "cuda-ipc" }, {}, { 0: "nccl" }, { 0: "cuda-ipc" }]);
    for (let round = 0; round < 3; round++) await star.round();
    expect(alive()).toBe(2);
  });

  test("random transfers between ranks that offer this and that: every byte, in every round", async () => {
    let both = 0;
    for (let seed = 0; seed < 8; seed++) {
      const random = new Random(seed);
      const offers = Array.from({ length: 6 }, () => random.pick<Offer>(["both", "both", "nccl"]));
      await using world = await openEach(offers);
      for (const partial of ["sum", undefined, "max"] as const) {
        const options = { bucketBytes: 4096, strategy: random.pick(["striped", "direct"] as const) };
        const more = random.chance(50) ? { bucketsInFlight: 1, peersInFlight: 1 } : {};
        const transfer = randomCase(10 * seed + 3, {
          ...(partial === undefined ? {} : { partial }),
          options: { ...options, ...more },
        });
        const prepared = await prepareOnGpu(world.sessions, transfer);
        both += waysOf(prepared).filter((ways) => new Set(Object.values(ways)).size === 2).length;
        for (let round = 0; round < 3; round++) await prepared.round({ delays: random });
        await prepared[Symbol.asyncDispose]();
      }
    }
    expect(both).toBeGreaterThan(20);
    expect(alive()).toBe(0);
  });

  test("two ranks of one GPU take cuda-ipc, while one of them meets others by nccl", async () => {
    await using world = await openEach(["both", "both", "nccl"], (rank) => ({
      ordinal: rank === 1 ? 0 : rank,
    }));
    const prepared = await prepareOnGpu(world.sessions, matrix(3, [[0], Replicate()], [[1, 2], Shard(0)]));
    expect(waysOf(prepared)[0]).toEqual({ 1: "cuda-ipc", 2: "nccl" });
    for (let round = 0; round < 3; round++) await prepared.round();
  });

  test("two ranks of one GPU that both need it are TB_DEVICE_SHARED, with the GPU, before anything is made", async () => {
    await using world = await openEach(["both", "both", "nccl"], (rank) => ({
      ordinal: rank === 1 ? 0 : rank,
    }));
    const shared = { code: "TB_DEVICE_SHARED", details: { ranks: [0, 1], device: deviceOf(0) } };
    await expect(prepareOnGpu(world.sessions, columnsToRows(8, 8, {}, [0, 1, 2]))).rejects.toMatchObject(
      shared,
    );
    const check = (ranks: readonly number[]) => world.sessions[2]!.checkRanks!(ranks);
    await expect(check([0, 1, 2])).rejects.toMatchObject(shared);
    await expect(check([0, 1])).resolves.toBeUndefined();
    await expect(check([0, 2])).resolves.toBeUndefined();
  });

  test("NCCL of another version at one end is TB_UNSUPPORTED at both, with the two versions", async () => {
    const folder = mkdtempSync(join(tmpdir(), "tensorbus-nccl-"));
    // A library is asked for its version once: this one is another.
    for (const name of ["libnccl.so", "libcuda.so"])
      copyFileSync(join(libnccl, "..", name), join(folder, name));
    const stores = memoryStores();
    const open = (rank: number, options: RankOptions) =>
      transportOf("nccl", rank, options).open({ rank, world: 2, store: stores() });
    const sessions = [await open(0, {})];
    process.env["NCCL_DOUBLE_VERSION"] = "22809";
    try {
      sessions.push(await open(1, { library: join(folder, "libnccl.so") }));
    } finally {
      delete process.env["NCCL_DOUBLE_VERSION"];
      rmSync(folder, { recursive: true });
    }
    await expect(prepareOnGpu(sessions, columnsToRows(8, 8, {}, [0, 1]))).rejects.toMatchObject({
      code: "TB_UNSUPPORTED",
      message: expect.stringMatching(
        /ranks 0 and 1: .*nccl: one has version 2\.\d+\.\d+ and the other 2\.\d+\.\d+/,
      ),
    });
    for (const session of sessions) await session.close();
  });

  test("forced, where one end has no NCCL: TB_UNSUPPORTED says what lacks", async () => {
    await using world = await openEach(["nccl", "cuda-ipc"]);
    await expect(prepareOnGpu(world.sessions, columnsToRows(8, 8, {}, [0, 1]))).rejects.toMatchObject({
      code: "TB_UNSUPPORTED",
      message: expect.stringMatching(/no way between the two: .*nccl: one of the two does not use it/),
    });
  });

  test("what the store says of a rank that came back otherwise is asked for again", async () => {
    const port = await freePort();
    const options = (rank: number) => (rank === 2 ? { port } : {});
    await using world = await openEach(["both", "both", "both"], options);
    await world.sessions[2]!.close();
    const old = await recordOf(world, () => world.open(2, "both"));
    world.sessions[2] = await world.open(2, "nccl");
    await world.sessions[0]!.close();
    const store = showingFirst(world.stores(), "/address/2", old);
    world.sessions[0] = await transportOf("both", 0).open({ rank: 0, world: 3, store });
    // Ranks begin anew by themselves, unless one of them had prepared before: then it ends at the deadline.
    let prepared: PreparedCase | undefined;
    for (let attempt = 0; prepared === undefined; attempt++) {
      prepared = await prepareOnGpu(world.sessions, columnsToRows(24, 24, {}, [0, 1, 2]), {
        timeoutMs: 2000,
      }).catch((error: unknown) => {
        if (attempt === 3) throw error;
        expect(error).toMatchObject({ code: "TB_TIMEOUT" });
        return undefined;
      });
    }
    expect(waysOf(prepared)[0]).toEqual({ 1: "cuda-ipc", 2: "nccl" });
    await prepared.round();
  });
});

/** What a session publishes of itself, which is then closed. */
async function recordOf(
  { stores }: { readonly stores: () => Store },
  open: () => Promise<TransportSession>,
): Promise<Uint8Array> {
  const session = await open();
  const store = stores();
  const scope = { transport: "tcp", namespace: store.namespace, generation: 0n, secrets: [] };
  const record = await store.get(addressKey(scope, 2));
  await session.close();
  return record!;
}

/** A store that shows an old value when a key is read for the first time. */
function showingFirst(store: Store, key: string, old: Uint8Array): Store {
  let shown = false;
  return new Proxy(store, {
    get(target, name) {
      const value = Reflect.get(target, name) as unknown;
      if (typeof value !== "function") return value;
      if (name !== "get") return value.bind(target);
      return async (...parameters: Parameters<Store["get"]>) => {
        if (shown || !parameters[0].endsWith(key)) return target.get(...parameters);
        shown = true;
        return old;
      };
    },
  });
}

describe("rounds that fail", () => {
  /** 0 reads of 1 what it folds by cuda-ipc, and sends the sum to 2 by nccl. */
  async function within(
    body: (prepared: PreparedCase, world: Awaited<ReturnType<typeof openEach>>) => Promise<void>,
  ) {
    await using world = await openEach(["both", "cuda-ipc", "nccl"]);
    const prepared = await prepareOnGpu(world.sessions, sum());
    expect(waysOf(prepared)).toEqual([{ 1: "cuda-ipc", 2: "nccl" }, { 0: "cuda-ipc" }, { 0: "nccl" }]);
    for (const memory of prepared.memories) memory.fill(1);
    await body(prepared, world);
  }
  const sum = () => matrix(3, [[0, 1], Partial("sum")], [[2], Replicate()]);

  test.each([
    0, 2,
  ])("rank %d cancels while what is to be sent is not there: nobody takes what comes for good, and the next round works", (who) =>
    within(async (prepared) => {
      for (let round = 0; round < 3; round++) {
        const controller = new AbortController();
        // 1 has not begun: its contribution is missing, and 2 waits in NCCL for the sum.
        const early = [0, 2].map((rank) =>
          outcomeOf(prepared.executions[rank]!.run(rank === who ? { signal: controller.signal } : {})),
        );
        controller.abort();
        const cancelled = { code: "TB_CANCELLED", rank: who };
        expect(await Promise.all(early)).toEqual([cancelled, cancelled]);
        expect(await outcomeOf(prepared.executions[1]!.run())).toEqual(cancelled);
      }
      await prepared.round();
      expect(alive()).toBe(2);
    }));

  test("a deadline of one ends it for all, and the next round works", () =>
    within(async (prepared) => {
      const early = [0, 2].map((rank) =>
        outcomeOf(prepared.executions[rank]!.run(rank === 2 ? { timeoutMs: 50 } : {})),
      );
      // Rank 2 waits for rank 0 alone, which tells it whom it waits for itself.
      expect(await Promise.all(early)).toEqual([
        { code: "TB_CANCELLED", rank: 1 },
        { code: "TB_TIMEOUT", rank: 1 },
      ]);
      expect(await outcomeOf(prepared.executions[1]!.run())).toEqual({ code: "TB_CANCELLED", rank: 1 });
      await prepared.round();
      expect(alive()).toBe(2);
    }));

  test("who is lost and was not of the communicator leaves it to the others", () =>
    within(async (prepared, world) => {
      const early = [0, 2].map((rank) => outcomeOf(prepared.executions[rank]!.run()));
      await world.sessions[1]!.close();
      const lost = { code: "TB_PEER_LOST", rank: 1 };
      expect(await Promise.all(early)).toEqual([lost, lost]);
      for (const rank of [0, 2]) await prepared.executions[rank]!.release();
      expect(alive()).toBe(2);
      world.sessions[1] = await world.open(1);
      const next = await prepareOnGpu(world.sessions, sum());
      await next.round();
      expect(alive()).toBe(2);
    }));

  test("who is lost and was of it ends it; come back, all get another", () =>
    within(async (prepared, world) => {
      const early = [0, 2].map((rank) => (rank === 0 ? outcomeOf(prepared.executions[0]!.run()) : undefined));
      await world.sessions[2]!.close();
      expect(await early[0]).toEqual({ code: "TB_PEER_LOST", rank: 2 });
      for (const rank of [0, 1]) await prepared.executions[rank]!.release();
      world.sessions[2] = await world.open(2);
      const next = await prepareOnGpu(world.sessions, sum());
      for (let round = 0; round < 3; round++) await next.round();
      expect(alive()).toBe(2);
    }));
});
