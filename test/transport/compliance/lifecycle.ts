import { describe, expect, test } from "vitest";
import { planTransfer } from "../../../src/plan/index.ts";
import type { TransportSession } from "../../../src/transport/transport.ts";
import { allocate, kindOf, type TestMemory } from "../kit/test-memory.ts";
import { columnsToRows } from "./data.ts";
import { outcomeOf, prepareCase, type Subject } from "./world.ts";

const pair = columnsToRows(24, 24, {}, [0, 1]);

export function testLifecycle(subject: Subject): void {
  describe(`${subject.name}: life of a session`, () => {
    test("closing twice is closing once, and events$ completes", async () => {
      await using world = await subject.open(2);
      let completed = 0;
      world.sessions[0]!.events$.subscribe({ complete: () => completed++ });
      await Promise.all([world.sessions[0]!.close(), world.sessions[0]!.close()]);
      await world.sessions[0]!.close();
      await world.sessions[0]![Symbol.asyncDispose]();
      expect(completed).toBe(1);
    });

    test("every operation of a closed session and of what it prepared is TB_CLOSED", async () => {
      await using world = await subject.open(2);
      const prepared = await prepareCase(world.sessions, pair);
      const [session] = world.sessions as [TransportSession];
      const plan = await planTransfer(pair.input);
      const { memory } = allocate(kindOf(subject.capabilities), 64);
      session.register(memory);
      await session.close();
      const operations: Record<string, () => unknown> = {
        register: () => session.register(memory),
        unregister: () => session.unregister(memory),
        prepare: () => session.prepare(plan.program(0), [], { key: "late" }),
        run: () => prepared.executions[0]!.run(),
        progress: () => prepared.executions[0]!.progress(),
      };
      for (const [name, operation] of Object.entries(operations)) {
        await expect((async () => operation())(), name).rejects.toMatchObject({ code: "TB_CLOSED" });
      }
      await prepared.executions[0]!.release();
    });

    test("every operation of a released transfer is TB_CLOSED, but releasing it again", async () => {
      await using world = await subject.open(2);
      const { executions } = await prepareCase(world.sessions, pair);
      for (const execution of executions) {
        await execution.release();
        await execution.release();
        await execution[Symbol.asyncDispose]();
        expect(await outcomeOf(execution.run())).toMatchObject({ code: "TB_CLOSED" });
        expect(() => execution.progress()).toThrow(expect.objectContaining({ code: "TB_CLOSED" }));
      }
    });

    test("memory is retained while it is registered, and let go after", async () => {
      await using world = await subject.open(1);
      const kind = kindOf(subject.capabilities);
      const [first, second] = [allocate(kind, 4096), allocate(kind, 4096)];
      const lives = ({ memory }: TestMemory) => {
        try {
          return memory.address !== 0n;
        } catch {
          return false;
        }
      };
      world.sessions[0]!.register(first.memory);
      world.sessions[0]!.register(second.memory);
      first.close();
      second.close();
      expect([first, second].map(lives)).toEqual([true, true]);
      world.sessions[0]!.unregister(first.memory);
      expect([first, second].map(lives)).toEqual([false, true]);
      await world.sessions[0]!.close();
      expect(lives(second)).toBe(false);
    });

    test("what is in use is TB_BUSY: a second round, releasing, unregistering", async () => {
      await using world = await subject.open(2);
      const { executions, memories } = await prepareCase(world.sessions, pair);
      const [session] = world.sessions as [TransportSession];
      const controller = new AbortController();
      const round = outcomeOf(executions[0]!.run({ signal: controller.signal }));
      const busy = { code: "TB_BUSY" };
      expect(await outcomeOf(executions[0]!.run())).toMatchObject(busy);
      expect(await outcomeOf(executions[0]!.release())).toMatchObject(busy);
      expect(() => session.unregister(memories[0]!.memory)).toThrow(expect.objectContaining(busy));
      controller.abort();
      await round;
      expect(() => session.unregister(memories[0]!.memory)).toThrow(expect.objectContaining(busy));
      await executions[0]!.release();
      session.unregister(memories[0]!.memory);
    });

    test("disposing of a transfer cancels its round and releases it", async () => {
      await using world = await subject.open(2);
      const { executions } = await prepareCase(world.sessions, pair);
      const round = outcomeOf(executions[0]!.run());
      await executions[0]![Symbol.asyncDispose]();
      expect(await round).toEqual({ code: "TB_CANCELLED", rank: 0 });
    });

    test("round numbers only grow", async () => {
      await using world = await subject.open(2);
      const prepared = await prepareCase(world.sessions, pair);
      await Promise.all(prepared.executions.map((execution) => execution.run({ round: 7 })));
      const reports = await Promise.all(prepared.executions.map((execution) => execution.run()));
      expect(reports.map(({ round }) => round)).toEqual([8, 8]);
      await expect(prepared.executions[0]!.run({ round: 8 })).rejects.toThrow(TypeError);
      await expect(prepared.executions[0]!.run({ round: 0.5 })).rejects.toThrow(TypeError);
    });

    test("a transfer that is released and prepared again under its key works", async () => {
      await using world = await subject.open(2);
      for (let time = 0; time < 3; time++) {
        const prepared = await prepareCase(world.sessions, pair, { key: "again" });
        await prepared.round();
        await prepared[Symbol.asyncDispose]();
      }
    });

    test("progress goes from nothing to all", async () => {
      await using world = await subject.open(2);
      const prepared = await prepareCase(world.sessions, pair);
      const { stats } = prepared.executions[0]!;
      const total = stats.bytesSent + stats.bytesReceived + stats.bytesCopied;
      const seen: bigint[] = [];
      const subscription = prepared.executions[0]!.progress$.subscribe(({ bytesDone, bytesTotal }) => {
        expect(bytesTotal).toBe(total);
        seen.push(bytesDone);
      });
      await prepared.round();
      expect(seen.at(-1)).toBe(total);
      expect([...seen].sort((a, b) => Number(a - b))).toEqual(seen);
      let completed = false;
      subscription.add(() => {
        completed = true;
      });
      await prepared.executions[0]!.release();
      expect(completed).toBe(true);
    });

    test("opening asks for a rank within the world, and heeds its signal", async () => {
      await using world = await subject.open(1);
      expect(world.sessions[0]!.rank).toBe(0);
      await expect(subject.openOne({ rank: 2, world: 2 })).rejects.toThrow(TypeError);
      await expect(subject.openOne({ rank: 0, world: 0 })).rejects.toThrow(TypeError);
      await expect(subject.openOne({ rank: 0, world: 1, generation: -1 })).rejects.toThrow(TypeError);
      await expect(subject.openOne({ rank: 0, world: 1, signal: AbortSignal.abort() })).rejects.toMatchObject(
        { code: "TB_CANCELLED" },
      );
    });
  });
}
