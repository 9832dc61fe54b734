/** A rank of the benchmark of replicas: moves tensors by tensorbus, and as many bytes of the slow link by plain sockets. */
import { connect, createServer, type Socket } from "node:net";
import { createExecutor, type Execution } from "../../src/exec/executor.ts";
import { DeviceMesh, Replicate, Shard } from "../../src/layout/index.ts";
import { HostMemory } from "../../src/memory/index.ts";
import { planTransfer } from "../../src/plan/index.ts";
import { serveTcpStore } from "../../src/store/index.ts";
import { tcpStore } from "../../src/store/tcp-store.ts";
import { tcp } from "../../transports/tcp/index.ts";
import { serve } from "../children.ts";

interface Setup {
  readonly kind: "prepare";
  readonly rank: number;
  /** Ranks of each side: as many sources as replicas. */
  readonly side: number;
  readonly tensors: number;
  readonly megabytesPerSecond: number;
  /** Of the sources, with whom the store is, and of the replicas. */
  readonly addresses: readonly [string, string];
  readonly storePort: number;
}
export type Command = Setup | { readonly kind: "run" | "check" | "plain" };
export type Answer = { readonly kind: "done"; readonly strategy?: string; readonly ratio?: number };

/** Of one tensor: 2 MiB. */
const [rows, columns] = [512, 1024];
const tensorBytes = rows * columns * 4;
const plainPort = 7000;
const secret = "of one benchmark alone";

const valueAt = (tensor: number, element: number) => (tensor * 7919 + element) % 16_381;
const range = (first: number, count: number) => Array.from({ length: count }, (_, index) => first + index);

class Rank {
  readonly #setup: Setup;
  readonly #isSource: boolean;
  #memory: HostMemory | undefined;
  #execution: Execution | undefined;
  #socket: Socket | undefined;

  constructor(setup: Setup) {
    this.#setup = setup;
    this.#isSource = setup.rank < setup.side;
  }

  async prepare(): Promise<Answer> {
    const { rank, side, tensors, addresses, storePort, megabytesPerSecond } = this.#setup;
    if (rank === 0) await serveTcpStore({ host: addresses[0], port: storePort });
    const store = await tcpStore({ host: addresses[0], port: storePort, namespace: "replicas" });
    const host = addresses[this.#isSource ? 0 : 1];
    const session = await tcp({ host, secret }).open({
      rank,
      world: 2 * side,
      store,
    });
    const local = this.#isSource ? tensorBytes / side : tensorBytes;
    this.#memory = HostMemory.allocate(BigInt(local * tensors));
    session.register(this.#memory);
    this.#fill(local);
    const plan = await planTransfer({
      pairs: {
        all: {
          source: { mesh: new DeviceMesh([side]), placements: [Shard(0)] },
          target: { mesh: new DeviceMesh([side], { ranks: range(side, side) }), placements: [Replicate()] },
        },
      },
      tensors: range(0, tensors).map((tensor) => ({
        name: `tensor${tensor}`,
        pair: "all",
        shape: [rows, columns],
        dtype: "float32",
      })),
      bucketBytes: 256 * 1024,
      topology: {
        ranksPerHost: side,
        hostMBps: 1000,
        networkMBps: Math.ceil(megabytesPerSecond / side),
        latencyUs: 50,
      },
    });
    const bound = new Map(
      range(0, tensors).map((tensor) => [
        tensor,
        { [this.#isSource ? "source" : "target"]: { memory: this.#memory!, offset: BigInt(tensor * local) } },
      ]),
    );
    this.#execution = await createExecutor(session).prepare(plan, { key: "replicas", tensors: bound });
    await this.#meetPlainly();
    return { kind: "done", strategy: plan.stats().patterns[0]!.strategy, ratio: plan.schedule()!.ratio };
  }

  async run(): Promise<Answer> {
    await this.#execution!.run({ timeoutMs: 300_000 });
    return { kind: "done" };
  }

  /** What the slow link carries, by one plain socket for each source: a share of all tensors. */
  async plain(): Promise<Answer> {
    const { side, tensors } = this.#setup;
    const bytes = (tensorBytes * tensors) / side;
    const socket = this.#socket!;
    if (this.#isSource) {
      const block = Buffer.alloc(64 * 1024, 1);
      for (let sent = 0; sent < bytes; sent += block.length) {
        if (!socket.write(block.subarray(0, Math.min(block.length, bytes - sent)))) {
          await new Promise((resolve) => socket.once("drain", resolve));
        }
      }
    } else {
      await new Promise<void>((resolve) => {
        let left = bytes;
        const take = (chunk: Buffer) => {
          left -= chunk.length;
          if (left > 0) return;
          // What the next call sends stays in the socket until somebody takes it.
          socket.pause().off("data", take);
          resolve();
        };
        socket.on("data", take).resume();
      });
    }
    return { kind: "done" };
  }

  /** Fails if a replica does not hold what the sources sent. */
  check(): Answer {
    if (this.#isSource) return { kind: "done" };
    for (let tensor = 0; tensor < this.#setup.tensors; tensor++) {
      const values = this.#memory!.view(Float32Array, BigInt(tensor * tensorBytes), rows * columns);
      for (let element = 0; element < values.length; element++) {
        if (values[element] !== valueAt(tensor, element)) {
          throw new Error(`element ${element} of tensor ${tensor} is ${values[element]}`);
        }
        values[element] = -1;
      }
    }
    return { kind: "done" };
  }

  #fill(local: number): void {
    const { rank, tensors } = this.#setup;
    for (let tensor = 0; tensor < tensors; tensor++) {
      const values = this.#memory!.view(Float32Array, BigInt(tensor * local), local / 4);
      const first = this.#isSource ? (rank * local) / 4 : 0;
      for (let index = 0; index < values.length; index++) {
        values[index] = this.#isSource ? valueAt(tensor, first + index) : -1;
      }
    }
  }

  async #meetPlainly(): Promise<void> {
    const { rank, side, addresses } = this.#setup;
    if (!this.#isSource) {
      const server = createServer();
      server.listen(plainPort + rank - side, addresses[1]);
      this.#socket = await new Promise<Socket>((resolve) => server.once("connection", resolve));
      server.close();
      return;
    }
    while (this.#socket === undefined) {
      const socket = connect(plainPort + rank, addresses[1]);
      this.#socket = await new Promise((resolve) => {
        socket.once("connect", () => resolve(socket));
        socket.once("error", () => setTimeout(() => resolve(undefined), 50));
      });
    }
  }
}

let rank: Rank;

async function obey(command: Command): Promise<Answer> {
  if (command.kind !== "prepare") return rank[command.kind]();
  rank = new Rank(command);
  return rank.prepare();
}

serve(obey);
