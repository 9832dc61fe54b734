/**
 * UCX with CUDA memory: the real library, over which a shim says that it was built for CUDA, and the double of libcuda
 * (native/test/doubles). It shows what our own code does; no UCX that was built for CUDA has ever run it.
 */
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { queryUcx } from "../../src/ffi/ucx.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import { select } from "../../src/transport/selection.ts";
import { cudaIpc } from "../../transports/cuda-ipc/index.ts";
import { type UcxTransportOptions, ucx } from "../../transports/ucx/index.ts";
import { useCudaDouble } from "../doubles/cuda/index.ts";
import { castTypes, randomCase } from "./compliance/cases.ts";
import { testTransport } from "./compliance/suite.ts";
import { runCase, type Subject } from "./compliance/world.ts";
import { meetOn } from "./kit/meet.ts";
import { deviceOf, subjectOf } from "./kit/nccl-doubles.ts";
import { preferredMemory, testDevices } from "./kit/test-memory.ts";
import { ucxVersion } from "./kit/ucx.ts";

useCudaDouble();
process.env["CUDA_DOUBLE_DEVICES"] = "16";
testDevices.of = deviceOf;
preferredMemory.kind = "cuda";

const library = join(import.meta.dirname, "../../native/build/doubles/libucp-cuda.so");
const forCuda = (rank: number, options: UcxTransportOptions = {}) =>
  ucx({ library, transports: "tcp,self", device: deviceOf(rank), ...options });

function subject(name: string, options: UcxTransportOptions): Subject {
  const { joint: _, ...rest } = subjectOf(name, (rank) => forCuda(rank, options));
  return rest;
}

describe.skipIf(ucxVersion === undefined)(`UCX ${ucxVersion} that says it was built for CUDA`, () => {
  testTransport(subject("ucx of CUDA memory (double)", {}));

  test("between memory of GPUs and memory of the host", async () => {
    await using world = await subject("mixed", {}).open(6);
    const memory = (rank: number) => (rank % 2 === 0 ? "cuda" : "host");
    for (let seed = 900; seed < 906; seed++) {
      await runCase(world.sessions, randomCase(seed, { strided: seed % 2 === 0 }), { memory });
    }
    await runCase(world.sessions, randomCase(906, { partial: "sum" }), { memory });
    await runCase(world.sessions, randomCase(907, { types: castTypes }), { memory });
  });

  test("is taken for ranks that cuda-ipc does not reach, and only by those", async () => {
    const either = (rank: number) => select([cudaIpc({ device: deviceOf(rank) }), forCuda(rank)]);
    expect(await meetOn([either(0), forCuda(1)], ["cuda", "cuda"])).toEqual(["ucx", "ucx"]);
    testDevices.of = () => deviceOf(0);
    try {
      expect(await meetOn([either(0), either(0)], ["cuda", "cuda"])).toEqual(["cuda-ipc", "cuda-ipc"]);
    } finally {
      testDevices.of = deviceOf;
    }
  });
});

describe.skipIf(ucxVersion === undefined)(`UCX ${ucxVersion}, which was built without CUDA`, () => {
  const plain = { transports: "tcp,self" };

  test("refuses a GPU when it is opened, and says what to do", async () => {
    const opening = ucx({ ...plain, device: deviceOf(0) }).open({
      rank: 0,
      world: 1,
      store: memoryStores()(),
    });
    await expect(opening).rejects.toMatchObject({
      code: "TB_UNSUPPORTED",
      message: expect.stringMatching(/^UCX 1\.\d+\.\d+ moves no CUDA memory: .*cuda-ipc and nccl/),
    });
  });

  test("is too old below 1.16, whose protocols take all memory for the host's", () => {
    // Asked by another path, the library is loaded anew.
    const older = library.replace("/doubles/", "/doubles/./");
    process.env["UCX_DOUBLE_VERSION"] = "11501";
    try {
      expect(queryUcx({ library: older })).toMatchObject({ version: "1.15.1", cuda: false });
    } finally {
      delete process.env["UCX_DOUBLE_VERSION"];
    }
    expect(queryUcx({ library })).toMatchObject({ version: "1.16.0", cuda: true });
    process.env["UCX_PROTO_ENABLE"] = "n";
    try {
      expect(queryUcx({ library }).cuda).toBe(false);
    } finally {
      delete process.env["UCX_PROTO_ENABLE"];
    }
  });

  test("says at neither end that it moves CUDA memory, if the other's was not built for it", async () => {
    expect(ucx(plain).capabilities.memory).toEqual(["host", "shared"]);
    expect(forCuda(0).capabilities.memory).toEqual(["host", "shared", "cuda"]);
    const without = () => select([cudaIpc({ device: deviceOf(1) }), ucx(plain)]);
    const said = await meetOn([forCuda(0), without()], ["cuda", "cuda"]);
    expect(said[0]).toContain("ucx: UCX at one of the two does not move CUDA memory");
    expect(said[1]).toBe(said[0]);
  });
});
