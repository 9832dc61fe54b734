/** What lacks on a machine, and memory that others cannot open, on the double of libcuda (native/test/doubles/cuda). */
import koffi from "koffi";
import { expect, test } from "vitest";
import { createExecutor } from "../../src/exec/executor.ts";
import { cudaDevices, parseUuid } from "../../src/ffi/cuda.ts";
import { libraryPath, openLibrary } from "../../src/ffi/library.ts";
import { DeviceMemory } from "../../src/memory/index.ts";
import { planTransfer } from "../../src/plan/index.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import { cudaIpc } from "../../transports/cuda-ipc/index.ts";
import { doubleDevice, doubleLibrary, useCudaDouble } from "../doubles/cuda/index.ts";
import { columnsToRows } from "./compliance/data.ts";

const open = (rank = 0, world = 1, store = memoryStores()()) =>
  cudaIpc({ device: doubleDevice }).open({ rank, world, store });

test("no driver, too old a driver, no GPU, no kernels: each says what lacks, and nothing stays behind", async () => {
  process.env["TENSOR_BUS_LIBCUDA"] = "/nowhere/libcuda.so.1";
  await expect(open()).rejects.toMatchObject({
    code: "TB_LIBRARY",
    message: expect.stringContaining("/nowhere"),
  });
  process.env["TENSOR_BUS_LIBCUDA"] = libraryPath();
  expect(openLibrary().unload).toBeTypeOf("function");
  await expect(open()).rejects.toMatchObject({
    code: "TB_LIBRARY",
    message: expect.stringContaining("not a CUDA driver"),
  });
  useCudaDouble();
  process.env["CUDA_DOUBLE_VERSION"] = "10020";
  await expect(open()).rejects.toMatchObject({
    code: "TB_LIBRARY",
    message: expect.stringMatching(/10\.2.*11\.4/),
  });
  delete process.env["CUDA_DOUBLE_VERSION"];
  process.env["CUDA_DOUBLE_DEVICES"] = "0";
  await expect(open()).rejects.toMatchObject({ code: "TB_DEVICE" });
  delete process.env["CUDA_DOUBLE_DEVICES"];
  const kernels = process.env["TENSOR_BUS_CUDA_KERNELS"];
  process.env["TENSOR_BUS_CUDA_KERNELS"] = "/nowhere/kernels.ptx";
  await expect(open()).rejects.toMatchObject({
    code: "TB_LIBRARY",
    message: expect.stringContaining("nvcc"),
  });
  process.env["TENSOR_BUS_CUDA_KERNELS"] = kernels;
  expect(cudaDevices().devices).toEqual([{ uuid: doubleDevice, name: expect.stringContaining("double") }]);
  await (await open()).close();
});

test("UUIDs of GPUs are read as nvidia-smi writes them, and nothing else", () => {
  expect(Buffer.from(parseUuid(doubleDevice)).toString()).toBe("cuda-double-dev0");
  for (const text of ["", "0", "cuda:0", "GPU-1234", `${doubleDevice}0`]) {
    expect(() => parseUuid(text), text).toThrow(expect.objectContaining({ code: "TB_DEVICE" }));
  }
});

/** Memory as PyTorch's expandable segments are: mapped piece by piece, so that no handle stands for it. */
function allocateExpandable(bytes: number): bigint {
  const driver = koffi.load(doubleLibrary);
  const context = new BigUint64Array(1);
  const address = new BigUint64Array(1);
  expect(driver.func("int cuInit(unsigned int)")(0)).toBe(0);
  expect(driver.func("int cuDevicePrimaryCtxRetain(void *, int)")(context, 0)).toBe(0);
  expect(driver.func("int cuCtxSetCurrent(uintptr_t)")(context[0])).toBe(0);
  expect(driver.func("int cuda_double_allocate_expandable(void *, size_t)")(address, bytes)).toBe(0);
  return address[0]!;
}

test("an expandable segment has no handle, and says how to allocate; within a process it moves all the same", async () => {
  useCudaDouble();
  const address = allocateExpandable(4096);
  const memory = DeviceMemory.over(doubleDevice, address, 4096);
  expect(() => memory.export()).toThrow(
    expect.objectContaining({
      code: "TB_UNSUPPORTED",
      message: expect.stringContaining("expandable_segments:False"),
    }),
  );
  const stores = memoryStores();
  const sessions = await Promise.all([0, 1].map((rank) => open(rank, 2, stores())));
  const plan = await planTransfer(columnsToRows(8, 8, {}, [0, 1]).input);
  const other = DeviceMemory.allocate(doubleDevice, 4096);
  const executions = await Promise.all(
    sessions.map((session, rank) => {
      const local = rank === 0 ? memory : other;
      session.register(local);
      const tensors = new Map([
        [0, { source: { memory: local, offset: 0n }, target: { memory: local, offset: 2048n } }],
      ]);
      return createExecutor(session).prepare(plan, { key: "expandable", tensors });
    }),
  );
  await Promise.all(executions.map((execution) => execution.run()));
  for (const session of sessions) await session.close();
});
