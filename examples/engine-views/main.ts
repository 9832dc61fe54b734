// An engine that holds its parameters as vLLM does (q, k and v in one, gate and up in another) receives a trainer's weights
// in place: each part of a parameter is a view of its memory, and the views are the preset's, not written by hand.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Agent, memoryStores, planTransfer, TensorBusClient } from "tensorbus";
import {
  joinSides,
  type LocalLayouts,
  layoutModel,
  modelOf,
  type PartView,
  partViews,
  rankParameters,
} from "tensorbus/model";
import { memory } from "tensorbus/transports/memory";

// A small Llama; the names, shapes and types of its checkpoint follow from its config.
const model = modelOf(
  JSON.stringify({
    model_type: "llama",
    architectures: ["LlamaForCausalLM"],
    torch_dtype: "float32",
    vocab_size: 256,
    hidden_size: 32,
    intermediate_size: 64,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
  }),
);

// Two ranks that hold it as FSDP2 does, and two of an engine.
const trainer = layoutModel(model, "fsdp2:dp=2");
const engine = layoutModel(model, "vllm:tp=2", 2);
const { pairs, tensors, parts } = joinSides(trainer.side, engine.side);
const plan = await planTransfer({ pairs, tensors });
plan.verify();

/** The memory of a rank's parameters, and the planned tensors as views of it. */
function allocate(layouts: LocalLayouts, side: "source" | "target", rank: number) {
  const parameters = new Map<string, Float32Array>();
  for (const { name, shape } of rankParameters(layouts, rank)) {
    parameters.set(name, new Float32Array(shape.reduce((a, b) => a * b, 1)));
  }
  return { parameters, views: [...partViews({ pairs, tensors, parts }, layouts, side, rank)] };
}

const folder = await mkdtemp(join(tmpdir(), "engine-views-"));
const stores = memoryStores();
const transport = memory();
interface Rank extends ReturnType<typeof allocate> {
  readonly rank: number;
  readonly side: "source" | "target";
  readonly agent: Agent;
  readonly client: TensorBusClient;
}
const ranks: Rank[] = [];
for (const rank of [0, 1, 2, 3]) {
  const paths = {
    commandQueuePath: join(folder, `rank-${rank}/queue`),
    agentStatePath: join(folder, `rank-${rank}/state`),
  };
  const agent = await Agent.start({ rank, world: 4, ...paths, store: stores(), transport });
  const client = await TensorBusClient.connect({ agentRank: rank, ...paths });
  const side = rank < 2 ? "source" : "target";
  ranks.push({ rank, agent, client, side, ...allocate(rank < 2 ? trainer : engine, side, rank) } as const);
}

try {
  await Promise.all(
    ranks.flatMap(({ client, side }) =>
      Object.entries(pairs).map(([pairName, pair]) =>
        client.initPair({
          pairName,
          localName: side === "source" ? "trainer" : "engine",
          remoteName: side === "source" ? "engine" : "trainer",
          expectedWorldSize: 2,
          deviceMesh: pair[side].mesh,
          placements: pair[side].placements,
          ...(pair[side].stridedShard !== undefined && { stridedShard: pair[side].stridedShard }),
        }),
      ),
    ),
  );
  const handlers = await Promise.all(
    ranks.map(({ client, views, parameters }) =>
      client.registerTensors(
        "step",
        views.map((view) => [describe(view, parameters), tensors[view.index]!.pair] as const),
      ),
    ),
  );

  for (const { side, views, parameters } of ranks) if (side === "source") fill(views, parameters);
  const transfers = await Promise.all(
    handlers.map((handler, index) => handler.transfer(ranks[index]!.side === "source" ? "send" : "recv")),
  );
  await Promise.all(transfers.map((transfer) => transfer.wait()));
  for (const { rank, side, parameters } of ranks) if (side === "target") check(rank, parameters);
} finally {
  await Promise.all(ranks.map(({ client }) => client.close()));
  await Promise.all(ranks.map(({ agent }) => agent.close()));
  await rm(folder, { recursive: true, force: true });
}

/** A planned tensor of a client: no memory of its own, but a place in a parameter's. */
function describe(
  { tensor, parameter, shape, offset, strides, index }: PartView,
  parameters: Map<string, Float32Array>,
) {
  const data = parameters.get(parameter)!;
  return {
    name: tensor,
    data,
    byteOffset: offset * data.BYTES_PER_ELEMENT,
    shape,
    strides,
    globalShape: tensors[index]!.shape,
  };
}

/** Element i of the checkpoint's tensor t is t * 1e5 + i, whoever holds it. */
function fill(views: readonly PartView[], parameters: Map<string, Float32Array>): void {
  for (const { index, parameter, shape } of views) {
    const planned = parts[index]!;
    const rows = planned.length[0]!;
    const width = planned.length.reduce((a, b) => a * b, 1) / rows;
    const memoryOf = parameters.get(parameter)!;
    // FSDP2 gives rank r of n the r-th run of rows.
    const first = memoryOf === ranks[0]!.parameters.get(parameter) ? 0 : rows - shape[0]!;
    for (let at = 0; at < memoryOf.length; at++) memoryOf[at] = planned.tensor * 1e5 + first * width + at;
  }
}

/** Against the boxes of the layout, which say for every parameter what of which tensor lies where. */
function check(rank: number, parameters: Map<string, Float32Array>): void {
  let checked = 0;
  for (const { name, shape, boxes } of rankParameters(engine, rank)) {
    const values = parameters.get(name)!;
    for (const { tensor, start, length, at } of boxes) {
      const number = model.tensors.findIndex((one) => one.name === tensor);
      const [, columns = 1] = model.tensors[number]!.shape;
      const [, width = 1] = shape;
      for (let row = 0; row < length[0]!; row++) {
        for (let column = 0; column < (length[1] ?? 1); column++) {
          const expected = number * 1e5 + (start[0]! + row) * columns + (start[1] ?? 0) + column;
          const found = values[(at[0]! + row) * width + (at[1] ?? 0) + column];
          if (found !== expected) throw new Error(`${name} on rank ${rank}: ${found}, not ${expected}`);
          checked++;
        }
      }
    }
  }
  console.log(
    `rank ${rank}: ${parameters.size} parameters, ${checked} values received in place, each as it should be`,
  );
}
