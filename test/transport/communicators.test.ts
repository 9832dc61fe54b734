/** Who makes a communicator, and when the next one: against a store, with what native code does said by hand. */
import { expect, test } from "vitest";
import { Deadline } from "../../src/deadline.ts";
import { TensorBusError } from "../../src/errors.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import type { Store } from "../../src/store/store.ts";
import { type CommunicatorCalls, Communicators } from "../../transports/nccl/communicators.ts";

const secrets = [Buffer.from("a secret of more than 16 bytes")];
const scope = { transport: "nccl", namespace: "job", generation: 0n, secrets };
const deadline = (timeoutMs = 10_000) => new Deadline({ timeoutMs });

/** A library in which a communicator is there once all of an id have joined. */
class Library {
  readonly joined = new Map<string, Set<Communicators>>();
  readonly broken = new Set<string>();
  ids = 0;
  callsOf(owner: () => Communicators, size: number): CommunicatorCalls & { readonly left: bigint[] } {
    const own: string[] = [];
    const left: bigint[] = [];
    return {
      left,
      uniqueId: () => {
        const id = Buffer.alloc(128);
        id.writeUInt32LE(++this.ids);
        return id;
      },
      join: ({ id }) => {
        const name = Buffer.from(id).toString("hex");
        own.push(name);
        this.joined.set(name, (this.joined.get(name) ?? new Set()).add(owner()));
        return BigInt(own.length);
      },
      isJoined: (communicator) => {
        const name = own[Number(communicator) - 1]!;
        if (this.broken.has(name)) throw new TensorBusError("TB_NCCL", "it broke");
        return this.joined.get(name)!.size === size;
      },
      leave: (communicator) => {
        left.push(communicator);
      },
    };
  }
  /** What all that were made until now are from here on. */
  breakAll(): void {
    for (const name of this.joined.keys()) this.broken.add(name);
  }
}

const ranks = Int32Array.of(1, 4, 6);

function member(
  library: Library,
  store: Store,
  rank: number,
  options: { device?: number; size?: number; sharedDevices?: boolean; secrets?: readonly Uint8Array[] } = {},
) {
  const device = new Uint8Array(16).fill(options.device ?? rank);
  const calls = library.callsOf(() => made, options.size ?? ranks.length);
  const made: Communicators = new Communicators({
    store,
    scope: { ...scope, secrets: options.secrets ?? secrets },
    rank,
    device,
    sharedDevices: options.sharedDevices ?? false,
    calls,
  });
  const announce = () => made.announce(ranks, deadline());
  return { made, left: calls.left, announce };
}

type Member = ReturnType<typeof member>;

/** All announce themselves, as before a prepare, and ask, as after it. */
async function ask(members: readonly Member[], timeoutMs = 10_000): Promise<bigint[]> {
  const tickets = await Promise.all(members.map(({ announce }) => announce()));
  return Promise.all(members.map(({ made }, index) => made.of(ranks, tickets[index]!, deadline(timeoutMs))));
}

/** The same, however each of them ends. */
async function askEach(members: readonly Member[], timeoutMs = 10_000) {
  const tickets = await Promise.all(members.map(({ announce }) => announce()));
  return Promise.allSettled(
    members.map(({ made }, index) => made.of(ranks, tickets[index]!, deadline(timeoutMs))),
  );
}

function three() {
  const stores = memoryStores();
  const library = new Library();
  return { stores, library, members: [...ranks].map((rank) => member(library, stores(), rank)) };
}

test("all get the same one, and get it again", async () => {
  const { library, members } = three();
  expect(await ask(members)).toEqual([1n, 1n, 1n]);
  expect(await ask(members)).toEqual([1n, 1n, 1n]);
  expect(await Promise.all([ask(members), ask(members)])).toEqual([
    [1n, 1n, 1n],
    [1n, 1n, 1n],
  ]);
  expect(library.ids).toBe(1);
});

test("a rank that came back as another gets the next one, with a new id, and the others leave the old", async () => {
  const { stores, library, members } = three();
  await ask(members);
  for (const index of [2, 0]) {
    members[index] = member(library, stores(), ranks[index]!);
    await ask(members);
  }
  expect(library.ids).toBe(3);
  expect(members[1]!.left).toEqual([1n, 2n]);
  expect([...library.joined.values()].map(({ size }) => size)).toEqual([3, 3, 3]);
});

test("one that broke is followed by another, whoever noticed", async () => {
  const { library, members } = three();
  await ask(members);
  library.breakAll();
  expect(await ask(members)).toEqual([2n, 2n, 2n]);
  expect(library.ids).toBe(2);
});

test("what breaks again and again is told", async () => {
  const { library, members } = three();
  const breaking = setInterval(() => library.breakAll(), 1);
  try {
    await expect(ask(members)).rejects.toMatchObject({ code: "TB_NCCL" });
  } finally {
    clearInterval(breaking);
  }
});

test("a rank that does not ask is named at the deadline", async () => {
  const { members } = three();
  expect(await askEach(members.slice(0, 2), 60)).toMatchObject([
    { reason: { code: "TB_TIMEOUT", details: { ranks: [6] } } },
    { reason: { code: "TB_TIMEOUT", details: { ranks: [1] } } },
  ]);
  // Who comes later finds them, and all go on.
  expect(await ask(members)).toEqual([1n, 1n, 1n]);
});

test("two ranks on one device are TB_DEVICE_SHARED to all, unless that is allowed", async () => {
  const stores = memoryStores();
  const library = new Library();
  const on = (sharedDevices: boolean) =>
    [...ranks].map((rank) => member(library, stores(), rank, { device: rank === 1 ? 1 : 7, sharedDevices }));
  for (const outcome of await askEach(on(false))) {
    expect(outcome).toMatchObject({ reason: { code: "TB_DEVICE_SHARED", details: { ranks: [4, 6] } } });
  }
  expect(library.ids).toBe(0);
  expect(await ask(on(true))).toEqual([1n, 1n, 1n]);
});

test("records of another secret are nobody's", async () => {
  const stores = memoryStores();
  const library = new Library();
  const members = [...ranks].map((rank) =>
    member(
      library,
      stores(),
      rank,
      rank === 6 ? { secrets: [Buffer.from("another secret, as long as it")] } : {},
    ),
  );
  const [outcome] = await askEach(members, 80);
  expect(outcome).toMatchObject({ reason: { code: "TB_TIMEOUT", details: { ranks: [6] } } });
  expect(library.ids).toBe(0);
});

test("a wait ends by its signal", async () => {
  const { members } = three();
  const controller = new AbortController();
  setTimeout(() => controller.abort(), 10);
  await expect(
    members[0]!.made.of(ranks, 1, new Deadline({ signal: controller.signal })),
  ).rejects.toMatchObject({ code: "TB_CANCELLED" });
});

test("a rank alone needs nobody, and no store", async () => {
  const library = new Library();
  const { made } = member(library, memoryStores()(), 3, { size: 1 });
  expect(await made.of(Int32Array.of(3), 0, deadline())).toBe(1n);
  expect(library.ids).toBe(0);
});
