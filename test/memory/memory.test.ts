import { spawnSync } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { TensorBusError } from "../../src/errors.ts";
import { HostMemory, SharedMemory } from "../../src/memory/index.ts";

const code = (run: () => unknown): string => {
  try {
    run();
  } catch (error) {
    return error instanceof TensorBusError ? error.code : (error as Error).name;
  }
  return "no error";
};
const mappedAt = (address: bigint) =>
  readFileSync("/proc/self/maps", "latin1").includes(`${address.toString(16).padStart(8, "0")}-`);

describe("HostMemory.allocate", () => {
  it("gives zeroed pages that are seen through typed arrays", async () => {
    await using memory = HostMemory.allocate(10_000);
    expect(memory.kind).toBe("host");
    expect(memory.bytes).toBe(10_000n);
    expect(memory.address % 4096n).toBe(0n);
    const floats = memory.view(Float32Array, 4096);
    expect(floats.length).toBe((10_000 - 4096) / 4);
    expect(floats.every((value) => value === 0)).toBe(true);
    floats[1] = 1.5;
    expect(memory.view(Uint32Array, 4100, 1)[0]).toBe(0x3fc00000);
    expect(memory.view(Uint8Array, 10_000).length).toBe(0);
  });

  it("refuses sizes that no machine has", () => {
    expect(code(() => HostMemory.allocate(0))).toBe("TB_REGION");
    expect(code(() => HostMemory.allocate(1n << 63n))).toBe("TB_REGION");
    expect(code(() => HostMemory.allocate(1n << 62n))).toBe("TB_NO_MEMORY");
  });

  it("refuses views outside of it, misaligned ones, and ones beyond 1 GiB", async () => {
    await using memory = HostMemory.allocate(2n ** 31n);
    expect(code(() => memory.view(Float32Array, 2))).toBe("RangeError");
    expect(code(() => memory.view(Uint8Array, -1, 1))).toBe("RangeError");
    expect(code(() => memory.view(Uint8Array, 2n ** 31n + 1n, 0))).toBe("RangeError");
    expect(code(() => memory.view(Uint8Array, 2n ** 31n - 4n, 5))).toBe("RangeError");
    expect(code(() => memory.view(Uint8Array, 0, 2 ** 30 + 1))).toBe("RangeError");
    expect(memory.view(Uint8Array, 2n ** 30n, 2 ** 30).length).toBe(2 ** 30);
  });

  it("addresses more than 4 GiB without touching them", async () => {
    await using memory = HostMemory.allocate(6n * 2n ** 30n);
    const view = memory.view(BigUint64Array, 5n * 2n ** 30n + 8n, 4);
    view[3] = 7n;
    expect(memory.view(Uint8Array, 5n * 2n ** 30n + 32n, 1)[0]).toBe(7);
  });
});

describe("the end of native memory", () => {
  it("comes when it is closed, released, and no view is left", async () => {
    const memory = HostMemory.allocate(4096);
    const address = memory.address;
    memory.retain();
    memory.close();
    memory.close();
    expect(memory.address).toBe(address);
    expect(memory.mapped).toBe(true);
    memory.release();
    expect(memory.mapped).toBe(false);
    expect(mappedAt(address)).toBe(false);
    expect(code(() => memory.address)).toBe("TB_CLOSED");
    expect(code(() => memory.retain())).toBe("TB_CLOSED");
    expect(code(() => memory.view(Uint8Array))).toBe("TB_CLOSED");
    expect(code(() => memory.release())).toBe("TypeError");
  });

  it("waits for views: one that is still held stays valid after close", async () => {
    const memory = HostMemory.allocate(4096);
    const view = memory.view(Uint8Array);
    memory.close();
    expect(memory.mapped).toBe(true);
    view[5] = 9;
    expect(view[5]).toBe(9);
  });

  it("comes when the collector took the last view, and for memory that was forgotten", () => {
    // A process of its own, in which the collector can be asked to run.
    const script = `
      import { HostMemory, SharedMemory } from ${JSON.stringify(`${import.meta.dirname}/../../src/memory/index.ts`)};
      const { readFileSync, readdirSync } = await import("node:fs");
      const mapped = (address) => readFileSync("/proc/self/maps", "latin1").includes(address.toString(16) + "-");
      const collect = async () => {
        for (let turn = 0; turn < 10; turn++) { globalThis.gc(); await new Promise((done) => setImmediate(done)); }
      };
      let kept = HostMemory.allocate(1 << 20);
      const address = kept.address;
      let view = kept.view(Uint8Array);
      kept.close();
      await collect();
      const before = mapped(address);
      view[0] = 1;
      view = undefined;
      await collect();
      const after = mapped(address) || kept.mapped;
      const descriptors = readdirSync("/proc/self/fd").length;
      const forgotten = (() => SharedMemory.create(1 << 20).address)();
      await collect();
      console.log(JSON.stringify([before, after, mapped(forgotten), readdirSync("/proc/self/fd").length - descriptors]));
    `;
    const result = runModule(script);
    expect(result).toEqual([true, false, false, 0]);
  });
});

/** Runs TypeScript in a process of its own, whose collector can be asked to run; gives the JSON that it prints. */
function runModule(script: string): unknown {
  const bundle = spawnSync(
    `${import.meta.dirname}/../../node_modules/.bin/esbuild`,
    ["--bundle", "--platform=node", "--format=esm", "--target=node20", "--external:koffi", "--loader=ts"],
    { input: script, encoding: "utf8", cwd: import.meta.dirname },
  );
  expect(bundle.stderr).toBe("");
  const ran = spawnSync(process.execPath, ["--expose-gc", "--input-type=module"], {
    input: bundle.stdout,
    encoding: "utf8",
    cwd: import.meta.dirname,
  });
  expect(ran.stderr).toBe("");
  return JSON.parse(ran.stdout);
}

describe("HostMemory.over", () => {
  it("is the caller's own bytes", () => {
    const floats = new Float32Array(100);
    const whole = HostMemory.over(floats.buffer);
    const part = HostMemory.over(floats.subarray(10, 20));
    expect(part.bytes).toBe(40n);
    expect(part.address - whole.address).toBe(40n);
    expect(HostMemory.over(new Uint8Array(4)).bytes).toBe(4n);
    expect(HostMemory.over(new SharedArrayBuffer(64)).bytes).toBe(64n);
  });

  it("refuses buffers that may move", () => {
    const Resizable = ArrayBuffer as unknown as new (bytes: number, options: object) => ArrayBuffer;
    expect(code(() => HostMemory.over(new Resizable(8, { maxByteLength: 16 })))).toBe("TypeError");
    expect(code(() => HostMemory.over(new Uint8Array(new Resizable(8, { maxByteLength: 16 }))))).toBe(
      "TypeError",
    );
    expect(code(() => HostMemory.over(new ArrayBuffer(0)))).toBe("TB_REGION");
  });

  it("notices that its buffer was transferred", () => {
    const buffer = new ArrayBuffer(64);
    const memory = HostMemory.over(buffer);
    structuredClone(buffer, { transfer: [buffer] });
    expect(code(() => memory.address)).toBe("TB_REGION");
    expect(code(() => HostMemory.over(buffer))).toBe("TypeError");
  });

  it("counts who retains it", () => {
    const memory = HostMemory.over(new Uint8Array(64));
    memory.retain();
    memory.retain();
    memory.release();
    memory.release();
    expect(code(() => memory.release())).toBe("TypeError");
  });
});

describe("SharedMemory", () => {
  it("is the same memory through every mapping, also in another process", async () => {
    await using created = SharedMemory.create(8192, "tensorbus-test");
    await using mapped = SharedMemory.map(created.descriptor!, 8192);
    expect(created.kind).toBe("shared");
    expect(mapped.address).not.toBe(created.address);
    created.view(Uint32Array)[3] = 0xabcd;
    expect(mapped.view(Uint32Array)[3]).toBe(0xabcd);
    const theirs = `/proc/${process.pid}/fd/${created.descriptor}`;
    const script = `const fs = require("node:fs"); const fd = fs.openSync("${theirs}", "r+");
      fs.writeSync(fd, Buffer.from([1, 2, 3]), 0, 3, 4096);`;
    expect(spawnSync(process.execPath, ["-e", script]).status).toBe(0);
    expect([...mapped.view(Uint8Array, 4096, 3)]).toEqual([1, 2, 3]);
  });

  it("lives on in a mapping when its creator closed it", async () => {
    const created = SharedMemory.create(4096);
    const copy = openSync(`/proc/self/fd/${created.descriptor}`, "r+");
    created.view(Uint8Array)[0] = 5;
    created.close();
    expect(created.descriptor).toBe(undefined);
    await using mapped = SharedMemory.map(copy, 4096);
    closeSync(copy);
    expect(mapped.view(Uint8Array)[0]).toBe(5);
  });

  it("maps nothing that is smaller than asked for, not sealed, or no memory", async () => {
    await using created = SharedMemory.create(4096);
    expect(code(() => SharedMemory.map(created.descriptor!, 4097))).toBe("TB_SEAL");
    expect(code(() => SharedMemory.map(created.descriptor!, 0))).toBe("TB_REGION");
    const file = openSync(import.meta.filename, "r");
    expect(code(() => SharedMemory.map(file, 1))).toBe("TB_SEAL");
    closeSync(file);
    expect(code(() => SharedMemory.map(-1, 1))).toBe("TB_SYSTEM");
  });

  it("says that there is no room for an impossible size", () => {
    expect(code(() => SharedMemory.create(1n << 60n))).toBe("TB_NO_SPACE");
  });
});
