import { describe, expect, test } from "vitest";
import { createExecutor } from "../../../src/exec/executor.ts";
import { HostMemory, type Memory, SharedMemory } from "../../../src/memory/index.ts";
import { planTransfer } from "../../../src/plan/index.ts";
import { allocate, kindOf, testDevices } from "../kit/test-memory.ts";
import { columnsToRows } from "./data.ts";
import { prepareCase, prepareEach, type Subject } from "./world.ts";

const pair = columnsToRows(16, 16, {}, [0, 1]);
/** Bytes of a local tensor of that case: a source at 0 and a target at 1024 fit into a page. */
const localBytes = 16 * 8 * 4;

export function testRefusals(subject: Subject): void {
  describe(`${subject.name}: refusals`, () => {
    test("ranks that hold different plans are told so", async () => {
      await using world = await subject.open(2);
      const outcomes = await prepareEach(world.sessions, (rank) => ({
        key: "one",
        input: { ...pair.input, bucketBytes: rank === 0 ? 4096 : 8192 },
      }));
      expect(outcomes).toMatchObject([{ code: "TB_PLAN_MISMATCH" }, { code: "TB_PLAN_MISMATCH" }]);
      const prepared = await prepareCase(world.sessions, pair, { key: "one" });
      await prepared.round();
    });

    test.skipIf(!subject.capabilities.checksum)("ranks that disagree on checksums are told so", async () => {
      await using world = await subject.open(2);
      const outcomes = await prepareEach(world.sessions, (rank) => ({
        key: "one",
        input: pair.input,
        checksum: rank === 0,
      }));
      expect(outcomes).toMatchObject([{ code: "TB_PLAN_MISMATCH" }, { code: "TB_PLAN_MISMATCH" }]);
    });

    test("bad bindings name the tensor, before any peer is asked", async () => {
      await using world = await subject.open(2);
      const [session] = world.sessions;
      const plan = await planTransfer(pair.input);
      const kind = kindOf(subject.capabilities);
      const { memory } = allocate(kind, 4096);
      const { memory: stranger } = allocate(kind, 4096);
      session!.register(memory);
      const at = (offset: bigint, where: Memory = memory) => ({ memory: where, offset });
      const prepare = (tensor: object | undefined) =>
        createExecutor(session!).prepare(plan, {
          key: "bad",
          tensors: new Map(tensor === undefined ? [] : [[0, tensor]]),
        });
      const missing = { code: "TB_TENSOR_MISSING", details: { tensor: "matrix", rank: 0 } };
      const region = { code: "TB_REGION" };
      await expect(prepare(undefined)).rejects.toMatchObject(missing);
      await expect(prepare({ source: at(0n) })).rejects.toMatchObject(missing);
      await expect(prepare({ source: at(0n), target: at(1024n, stranger) })).rejects.toMatchObject(region);
      await expect(prepare({ source: at(0n), target: at(4097n) })).rejects.toMatchObject(region);
      await expect(prepare({ source: at(-4n), target: at(1024n) })).rejects.toMatchObject(region);
      const beyond = prepare({ source: at(0n), target: at(BigInt(4096 - localBytes + 4)) });
      await expect(beyond).rejects.toMatchObject({
        ...region,
        details: { tensor: "matrix", kind: "target" },
      });
      const overlapping = prepare({ source: at(0n), target: at(BigInt(localBytes - 4)) });
      await expect(overlapping).rejects.toMatchObject({
        code: "TB_ALIAS",
        details: { target: "matrix", other: "matrix", otherKind: "source" },
      });
    });

    test("a program of another rank, and a key that is in use", async () => {
      await using world = await subject.open(2);
      const plan = await planTransfer(pair.input);
      const wrong = world.sessions[0]!.prepare(plan.program(1), [], { key: "wrong" });
      await expect(wrong).rejects.toMatchObject({ code: "TB_PLAN_MISMATCH" });
      await prepareCase(world.sessions, pair, { key: "used" });
      await expect(prepareCase([world.sessions[0]!], pair, { key: "used" })).rejects.toMatchObject({
        code: "TB_BUSY",
      });
    });

    test("memory of every kind, as far as the capabilities say, and each only once", async () => {
      await using world = await subject.open(1);
      const [session] = world.sessions;
      const page = HostMemory.allocate(4096);
      const kinds: Record<Memory["kind"], Memory> = {
        host: page,
        shared: SharedMemory.create(4096),
        cuda: subject.capabilities.memory.includes("cuda")
          ? allocate("cuda", 4096).memory
          : { kind: "cuda", address: 4096n, bytes: 4096n, retain() {}, release() {} },
      };
      for (const [kind, memory] of Object.entries(kinds)) {
        const register = () => session!.register(memory);
        if (subject.capabilities.memory.includes(memory.kind)) {
          register();
          expect(register, kind).toThrow(TypeError);
          session!.unregister(memory);
          expect(() => session!.unregister(memory), kind).toThrow(
            expect.objectContaining({ code: "TB_REGION" }),
          );
        } else {
          expect(register, kind).toThrow(expect.objectContaining({ code: "TB_UNSUPPORTED" }));
        }
      }
    });

    test.skipIf(subject.capabilities.checksum)("checksums that it does not make", async () => {
      await using world = await subject.open(1);
      const plan = await planTransfer(pair.input);
      const prepared = world.sessions[0]!.prepare(plan.program(0), [], { key: "sum", checksum: true });
      await expect(prepared).rejects.toMatchObject({ code: "TB_UNSUPPORTED" });
    });

    test("in place: a copy of a rank to itself at the same addresses is nothing", async () => {
      await using world = await subject.open(2);
      const plan = await planTransfer({
        ...pair.input,
        pairs: { all: { ...pair.input.pairs["all"]!, target: pair.input.pairs["all"]!.source } },
      });
      const memories = world.sessions.map((_, rank) =>
        allocate(kindOf(subject.capabilities), 4096, testDevices.of(rank)),
      );
      const executions = await Promise.all(
        world.sessions.map((session, rank) => {
          const { memory, bytes, push } = memories[rank]!;
          session.register(memory);
          bytes.fill(rank + 1);
          push();
          const place = { memory, offset: 64n };
          return createExecutor(session).prepare(plan, {
            key: "in place",
            tensors: new Map([[0, { source: place, target: place }]]),
          });
        }),
      );
      await Promise.all(executions.map((execution) => execution.run()));
      for (const [rank, { bytes, pull }] of memories.entries()) {
        pull();
        expect(bytes.every((byte) => byte === rank + 1)).toBe(true);
      }
    });
  });
}
