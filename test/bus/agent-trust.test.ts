/** What an agent does not believe: clients that lie about their memory, records that others have signed. */
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it, vi } from "vitest";
import { AgentMemory } from "../../src/bus/batch/memory.ts";
import { openEventPort } from "../../src/bus/process/event-port.ts";
import { ownIdentity, randomClientId } from "../../src/bus/process/identity.ts";
import type { ClientIdentity } from "../../src/bus/queue/command-header.ts";
import type { RegionMessage } from "../../src/bus/queue/commands.ts";
import { HostRegions } from "../../src/bus/tensor/host-regions.ts";
import { storageOf } from "../../src/bus/tensor/shared-arena.ts";
import { leaveArena } from "../../src/bus/tensor/shared-tensor.ts";
import { TensorBusError } from "../../src/errors.ts";
import { SharedMemory } from "../../src/memory/index.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import { signedStore } from "../../src/store/signed.ts";
import type { TransportSession } from "../../src/transport/transport.ts";
import { memory } from "../../transports/memory/index.ts";
import { AgentWorld, failureOf, initPair, type Side, tensor } from "./kit/agent-kit.ts";

const trainer: Side = { name: "trainer", ranks: [0], placements: ["R"] };
const inference: Side = { name: "inference", ranks: [1], placements: ["R"] };

describe("records", () => {
  it("that another secret has signed are TB_AUTH at the client that waits for them", async () => {
    const stores = memoryStores();
    await using world = new AgentWorld();
    for (const rank of [0, 1]) {
      const ignored = new Map<string, string>();
      await world.startAgent(rank, {
        store: () =>
          signedStore(stores(), {
            secrets: [Buffer.alloc(16, rank)],
            onIgnored: ({ key, reason }) => ignored.set(key, reason),
          }),
        distrust: (key) => ignored.get(key),
      });
    }
    const clients = [[await world.client(0)], [await world.client(1)]] as const;
    const calls = [
      failureOf(initPair([clients[0], []], [trainer, { ...inference, ranks: [] }], "weights", 2000)),
      failureOf(initPair([[], clients[1]], [{ ...trainer, ranks: [] }, inference], "weights", 2000)),
    ];
    for (const failure of await Promise.all(calls)) {
      expect(failure).toMatchObject({ code: "TB_AUTH", details: { pair: "weights" } });
    }
  });
});

describe("memory of clients", () => {
  const cleanUps: (() => unknown)[] = [];
  afterEach(async () => {
    for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
  });

  const client: ClientIdentity = { ...ownIdentity(), id: randomClientId(), wake: "" };
  function reporting() {
    const port = openEventPort();
    cleanUps.push(() => port.close());
    return {
      port,
      onFault: (error: unknown) => {
        throw error;
      },
    };
  }
  async function open(): Promise<{ session: TransportSession; held: AgentMemory }> {
    const session = await memory().open({ rank: 0, world: 1, store: memoryStores()() });
    cleanUps.push(() => session.close());
    return { session, held: new AgentMemory(new HostRegions(), reporting()) };
  }
  function region(over: Partial<Extract<RegionMessage, { kind: "shared" }>> = {}): RegionMessage {
    const storage = storageOf(tensor([8, 8]).data.buffer)!.storage;
    return {
      kind: "shared",
      fd: storage.memory.descriptor!,
      ...storage.identity(),
      bytes: storage.memory.bytes,
      ...over,
    };
  }

  it("is mapped once for all who name it, and let go of with the last", async () => {
    const { session, held } = await open();
    const one = region();
    const first = held.hold(client, [one], session);
    const second = held.hold(client, [one, one], session);
    expect(held.size).toBe(1);
    expect(second.memories).toEqual([first.memories[0], first.memories[0]]);
    first.release();
    first.release();
    expect(held.size).toBe(1);
    second.release();
    expect(held.size).toBe(0);
    expect((first.memories[0] as SharedMemory).mapped).toBe(false);
  });

  it("that a peer may still read is let go of by its batch, stays mapped, and is refused from then on", async () => {
    const { session, held } = await open();
    const one = region();
    const first = held.hold(client, [one], session);
    const unregister = vi.spyOn(session, "unregister").mockImplementation(() => {
      throw new TensorBusError("TB_QUARANTINED", "a peer may still read this memory");
    });
    first.release();
    unregister.mockRestore();
    expect((first.memories[0] as SharedMemory).mapped).toBe(true);
    expect(() => held.hold(client, [one], session)).toThrow(
      expect.objectContaining({
        code: "TB_QUARANTINED",
        message: expect.stringMatching(/register other memory/),
      }),
    );
    leaveArena();
    held.hold(client, [region()], session).release();
  });

  it.each([
    ["a descriptor that is closed", () => region({ fd: 900 }), "TB_TENSOR_MISSING"],
    ["a larger size", () => ({ ...region(), bytes: 2n ** 40n }), "TB_SEAL"],
    ["another inode", () => ({ ...region(), inode: 1n }), "TB_REGION"],
    [
      "CUDA memory",
      () => ({ kind: "cuda", handle: new Uint8Array(64), device: "GPU", bytes: 1n }),
      "TB_UNSUPPORTED",
    ],
    ["a number that was never given", () => ({ kind: "host", key: 99n, bytes: 1n }), "TB_TENSOR_MISSING"],
  ] as const)("that is said to be %s is refused", async (_, lie, code) => {
    const { session, held } = await open();
    expect(() => held.hold(client, [lie() as RegionMessage], session)).toThrow(
      expect.objectContaining({ code }),
    );
    expect(held.size).toBe(0);
  });

  it("that is a file is refused, whatever is said of it", async () => {
    const { session, held } = await open();
    const folder = mkdtempSync(join(tmpdir(), "tensorbus-test-"));
    cleanUps.push(() => rmSync(folder, { recursive: true }));
    writeFileSync(join(folder, "file"), Buffer.alloc(4096));
    const fd = openSync(join(folder, "file"), "r+");
    cleanUps.push(() => closeSync(fd));
    const { fstatSync } = await import("node:fs");
    const { dev, ino } = fstatSync(fd, { bigint: true });
    const file = { kind: "shared", fd, device: dev, inode: ino, bytes: 4096n } as const;
    expect(() => held.hold(client, [file], session)).toThrow(
      expect.objectContaining({ code: "TB_TENSOR_MISSING" }),
    );
  });

  it("of a process that has ended, or another one with its number, is refused", async () => {
    const { session, held } = await open();
    for (const gone of [
      { ...client, startTime: 1n },
      { ...client, pid: 2 ** 22 + 5 },
    ]) {
      expect(() => held.hold(gone, [region()], session)).toThrow(
        expect.objectContaining({ code: "TB_CLIENT_LOST" }),
      );
    }
  });

  it("that is plain is only for clients in this process", async () => {
    const { session } = await open();
    const plain = new HostRegions();
    const held = new AgentMemory(plain, reporting());
    const shared = SharedMemory.create(4096);
    cleanUps.push(() => shared.close());
    const key = plain.add(shared);
    const message = { kind: "host", key, bytes: 4096n } as const;
    const alien = { ...client, pid: 1, startTime: 1n };
    expect(() => held.hold(alien, [message], session)).toThrow(
      expect.objectContaining({ code: "TB_CLIENT_LOST" }),
    );
    held.hold(client, [message], session).release();
    expect(held.size).toBe(0);
  });
});
