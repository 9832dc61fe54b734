/** Processes: transfers between them, memory of one that another fills, PyTorch's among them, and one that dies. */
import { type ChildProcess, fork, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { eventHappened } from "../../src/bus/batch/region-events.ts";
import { openEventPort } from "../../src/bus/process/event-port.ts";
import { Deadline } from "../../src/deadline.ts";
import { TensorBusError } from "../../src/errors.ts";
import { createExecutor } from "../../src/exec/executor.ts";
import { DeviceMesh, Replicate } from "../../src/layout/index.ts";
import { DeviceEvent, DeviceMemory } from "../../src/memory/index.ts";
import { planTransfer } from "../../src/plan/index.ts";
import { serveTcpStore } from "../../src/store/index.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import { cudaIpc } from "../../transports/cuda-ipc/index.ts";
import type { ChildMessage, ParentMessage, SeededCase } from "../transport/children/rank.ts";
import { castTypes } from "../transport/compliance/cases.ts";
import { type GpuCase, type Machine, outputOf, root, Skip } from "./machine.ts";

const bundles = join(root, "build/gpu");

export function processCases(machine: Machine): GpuCase[] {
  return [
    { name: "between six processes, byte for byte", run: () => runRanks() },
    { name: "a killed process is a lost peer to the others", run: () => killRank() },
    {
      name: "memory that another process owns is filled, between its events",
      run: () =>
        fillOwners(machine, () =>
          spawn(process.execPath, [join(bundles, "owner.mjs"), machine.device, size]),
        ),
    },
    {
      name: "a PyTorch tensor is filled between events of PyTorch, and compared in PyTorch",
      run: () => fillTorch(machine),
    },
    { name: "a device that is not there is TB_DEVICE", run: () => missingDevice() },
  ];
}

const world = 6;
const size = String(4 << 20);

async function ask(child: ChildProcess, message: ParentMessage): Promise<ChildMessage> {
  const answer = once(child, "message");
  const ended = once(child, "exit").then(() => {
    throw new Error("the rank's process ended");
  });
  child.send(message);
  const [received] = (await Promise.race([answer, ended])) as [ChildMessage];
  return received;
}

async function withRanks(
  count: number,
  body: (ranks: ChildProcess[], storePort: number) => Promise<void>,
): Promise<void> {
  await using store = await serveTcpStore();
  const ranks = Array.from({ length: count }, () => fork(join(bundles, "rank.mjs"), { stdio: "inherit" }));
  for (const child of ranks) child.once("exit", () => {});
  try {
    await body(ranks, store.port);
  } finally {
    for (const child of ranks) child.kill("SIGKILL");
  }
}

function runRanks(): Promise<void> {
  const cases: SeededCase[] = [
    { seed: 900, options: { strided: false } },
    { seed: 901, options: { strided: true } },
    { seed: 902, options: { types: castTypes, tensors: 4 } },
    { seed: 903, options: { partial: "sum" } },
    { seed: 905, options: { options: { strategy: "striped" } } },
  ];
  return withRanks(world, async (ranks, storePort) => {
    const setup = { world, storePort, peerTimeoutMs: 60_000, transport: "cuda-ipc", memory: "cuda" } as const;
    await Promise.all(ranks.map((child, rank) => ask(child, { kind: "cases", rank, cases, ...setup })));
  });
}

function killRank(): Promise<void> {
  return withRanks(3, async (ranks, storePort) => {
    const setup = {
      world: 3,
      storePort,
      peerTimeoutMs: 60_000,
      transport: "cuda-ipc",
      memory: "cuda",
    } as const;
    await Promise.all(ranks.map((child, rank) => ask(child, { kind: "prepare", rank, ...setup })));
    const rounds = ranks.slice(0, 2).map((child) => ask(child, { kind: "post" }));
    ranks[2]!.kill("SIGKILL");
    for (const round of await Promise.all(rounds)) {
      const outcome = round.kind === "round" ? round.outcome : undefined;
      if (typeof outcome !== "object" || outcome.code !== "TB_PEER_LOST") {
        throw new Error(`a round ended with ${JSON.stringify(outcome)}, not TB_PEER_LOST`);
      }
    }
  });
}

/** Rank 1's tensor is another process's: opened here, filled by rank 0, and looked at there. */
async function fillOwners(machine: Machine, start: () => ChildProcess): Promise<void> {
  const owner = start();
  let said = "";
  owner.stderr?.on("data", (text) => {
    said += String(text);
  });
  const lines = createInterface({ input: owner.stdout! })[Symbol.asyncIterator]();
  const next = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error(`the owner's process ended: ${said.trim().split("\n").at(-1)}`);
    return JSON.parse(value);
  };
  try {
    const ask = (line: string) => {
      owner.stdin!.write(`${line}\n`);
      return next();
    };
    const { handle, offset, uuid, ready, free } = await next();
    if (uuid !== machine.device) throw new Skip(`its tensor lies on ${uuid}, not on ${machine.device}`);
    const bytes = BigInt(size);
    const place = { device: machine.device, handle: bytesOf(handle) };
    const target = DeviceMemory.open({ ...place, offset: BigInt(offset), bytes });
    const source = DeviceMemory.allocate(machine.device, bytes);
    source.write(new Uint8Array(Number(bytes)).fill(77));
    await awaitEvent(machine.device, ready, () => ask("record ready"));
    await copy(machine.device, source, target);
    const done = DeviceEvent.open(machine.device, bytesOf(free));
    done.record();
    await ask("wait free");
    const { filled } = await ask("77");
    done.close();
    target.close();
    source.close();
    if (!filled) throw new Error("the owner does not see what was moved into its memory");
  } finally {
    owner.kill("SIGKILL");
  }
}

const bytesOf = (hex: string) => Uint8Array.from(Buffer.from(hex, "hex"));

/** Waits, as an agent does, for what another process records. */
async function awaitEvent(device: string, handle: string, record: () => Promise<unknown>): Promise<void> {
  await using port = openEventPort();
  using event = DeviceEvent.open(device, bytesOf(handle));
  await record();
  await eventHappened(port, event, new Deadline());
}

async function copy(device: string, source: DeviceMemory, target: DeviceMemory): Promise<void> {
  const stores = memoryStores();
  const only = (rank: number) => ({
    mesh: new DeviceMesh([1], { ranks: [rank] }),
    placements: [Replicate()],
  });
  const plan = await planTransfer({
    pairs: { only: { source: only(0), target: only(1) } },
    tensors: [{ name: "bytes", pair: "only", shape: [Number(source.bytes)], dtype: "uint8" }],
  });
  const sessions = await Promise.all(
    [0, 1].map((rank) => cudaIpc({ device }).open({ rank, world: 2, store: stores() })),
  );
  const places = [{ source: { memory: source, offset: 0n } }, { target: { memory: target, offset: 0n } }];
  const executions = await Promise.all(
    sessions.map((session, rank) => {
      session.register(rank === 0 ? source : target);
      return createExecutor(session).prepare(plan, { key: "copy", tensors: new Map([[0, places[rank]!]]) });
    }),
  );
  await Promise.all(executions.map((execution) => execution.run()));
  for (const session of sessions) await session.close();
}

async function fillTorch(machine: Machine): Promise<void> {
  if (machine.double) throw new Skip("PyTorch knows no double");
  if (outputOf("python3", ["-c", "import torch; print(torch.cuda.is_available())"]) !== "True") {
    throw new Skip("no PyTorch with CUDA here");
  }
  const script = join(root, "test/gpu/torch_owner.py");
  await fillOwners(machine, () => spawn("python3", [script, machine.device, size]));
}

async function missingDevice(): Promise<void> {
  const device = "GPU-00000000-0000-0000-0000-000000000001";
  const opening = cudaIpc({ device }).open({ rank: 0, world: 1, store: memoryStores()() });
  const error = await opening.then(
    () => undefined,
    (failure: unknown) => failure,
  );
  if (!(error instanceof TensorBusError) || error.code !== "TB_DEVICE" || !error.message.includes(device)) {
    throw new Error(`it ended with ${error}`);
  }
}
