/** Batches that hold whole models: a layout for each tensor, tensors that only some ranks hold, sides that differ. */
import { describe, expect, it } from "vitest";
import type { RegisterOptions, TensorBusClient } from "../../src/bus/client/client.ts";
import type { ClientLayout } from "../../src/bus/client/layout.ts";
import type { SharedTensor } from "../../src/bus/tensor/shared-tensor.ts";
import { DeviceMesh, holdingOf, parsePlacement, type Run } from "../../src/layout/index.ts";
import { AgentWorld, arrayOf, failureOf, fill, joinPair, type Side, tensor } from "./kit/agent-kit.ts";

const trainer: Side = { name: "trainer", ranks: [0, 1, 2, 3], placements: "tensors" };
const engine: Side = { name: "engine", ranks: [4, 5], placements: "tensors" };
const sides: readonly [Side, Side] = [trainer, engine];

function layout(mesh: readonly number[], ranks: readonly number[], ...placements: string[]): ClientLayout {
  return { deviceMesh: new DeviceMesh(mesh, { ranks }), placements };
}

/** The layouts by which ranks of a side hold a tensor; ranks in none of them do not hold it. */
type Layouts = readonly ClientLayout[];

interface ModelTensor {
  readonly shape: readonly number[];
  readonly source?: Layouts;
  readonly target?: Layouts;
}

const fsdp = layout([2, 2], [0, 1, 2, 3], "S(0)", "S(1)");
const stages = [layout([2], [0, 1], "S(1)"), layout([2], [2, 3], "S(1)")] as const;
const split = layout([2], [4, 5], "S(0)");
const copied = layout([2], [4, 5], "R");

/** Fully sharded and tensor parallel, outside of the tensor-parallel plan, two pipeline stages, an expert a rank. */
const model: Readonly<Record<string, ModelTensor>> = {
  embed: { shape: [7, 6], source: [fsdp], target: [split] },
  norm: { shape: [5], source: [layout([2], [0, 2], "S(0)"), layout([2], [1, 3], "S(0)")], target: [copied] },
  scale: { shape: [], source: [layout([4], [0, 1, 2, 3], "R")], target: [copied] },
  "layers.0.w": { shape: [4, 5], source: [stages[0]], target: [split] },
  "layers.1.w": { shape: [4, 5], source: [stages[1]], target: [split] },
  "experts.0.w": { shape: [3, 2], source: [layout([1], [0], "R")], target: [layout([1], [4], "R")] },
  "experts.1.w": { shape: [3, 2], source: [layout([1], [1], "R")], target: [layout([1], [4], "R")] },
  "experts.2.w": { shape: [3, 2], source: [layout([1], [2], "R")], target: [layout([1], [5], "R")] },
  "experts.3.w": { shape: [3, 2], source: [layout([1], [3], "R")], target: [layout([1], [5], "R")] },
};

interface Held {
  readonly name: string;
  readonly local: SharedTensor;
  readonly layout: ClientLayout;
  readonly ids: readonly number[];
}

/** What a rank holds of a model, each element's global index beside it. */
function heldBy(rank: number, side: "source" | "target", tensors: typeof model): Held[] {
  return Object.entries(tensors).flatMap(([name, { shape, [side]: layouts = [] }]) => {
    const own = layouts.find(({ deviceMesh }) => deviceMesh.ranks.includes(rank));
    if (own === undefined) return [];
    const placements = own.placements.map((each) => parsePlacement(String(each)));
    const holding = holdingOf({ mesh: own.deviceMesh, placements }, shape, rank)!;
    const ids = productOf(holding.runs, shape);
    return [{ name, local: tensor(holding.localShape), layout: own, ids }];
  });
}

function productOf(runs: readonly (readonly Run[])[], shape: readonly number[]): number[] {
  return runs.reduce(
    (ids, list, dim) =>
      ids.flatMap((id) =>
        list.flatMap(({ start, length }) =>
          Array.from({ length }, (_, index) => id * shape[dim]! + start + index),
        ),
      ),
    [0],
  );
}

type Clients = readonly [readonly TensorBusClient[], readonly TensorBusClient[]];

class Cluster {
  readonly clients: Clients;
  readonly held: readonly (readonly Held[])[];

  constructor(clients: Clients, tensors: typeof model = model) {
    this.clients = clients;
    this.held = sides.flatMap(({ ranks }, side) =>
      ranks.map((rank) => heldBy(rank, side === 0 ? "source" : "target", tensors)),
    );
  }

  register(
    options: RegisterOptions | ((at: number) => RegisterOptions) = {},
    of: (held: Held, at: number) => boolean = () => true,
  ) {
    return this.clients.flat().map((client, at) =>
      client.registerTensors(
        "model",
        this.held[at]!.filter((held) => of(held, at)).map(({ name, local, layout }) => [
          { data: local, name, layout },
          "weights",
        ]),
        { timeoutMs: 10_000, ...(typeof options === "function" ? options(at) : options) },
      ),
    );
  }

  /** Runs a round from trainer to engine, and gives the names of the engine's tensors that came wholly right. */
  async round(
    handlers: Awaited<ReturnType<TensorBusClient["registerTensors"]>>[],
    salt: number,
  ): Promise<string[][]> {
    const value = (name: string, id: number) => salt * 1000 + name.length * 100 + id;
    this.held.forEach((list, at) => {
      for (const { name, local, ids } of list) {
        fill(local, (index) => (at < 4 ? value(name, ids[index]!) : -1));
      }
    });
    const ends = await Promise.all(handlers.map((handler, at) => handler.transfer(at < 4 ? "send" : "recv")));
    await Promise.all(ends.map((end) => end.wait()));
    return this.held
      .slice(4)
      .map((list) =>
        list
          .filter(({ name, local, ids }) =>
            ids.every((id, index) => arrayOf(local)[index] === value(name, id)),
          )
          .map(({ name }) => name),
      );
  }
}

describe("a batch whose tensors have layouts of their own", () => {
  for (const commit of ["direct", "staged"] as const) {
    it(`moves a whole model, sub-meshes, stages and experts among it (${commit})`, async () => {
      await using world = await AgentWorld.start(6);
      const cluster = new Cluster(await joinPair(world, sides));
      const handlers = await Promise.all(cluster.register({ commit }));
      const count = Object.keys(model).length;
      expect(
        new Set(handlers.map(({ plans }) => JSON.stringify(Object.values(plans).sort()))),
      ).toHaveProperty("size", 2);
      expect(handlers[0]!.plans.send).toMatchObject({ tensors: count });
      for (let round = 1; round <= 2; round++) {
        expect(await cluster.round(handlers, round)).toEqual(
          cluster.held.slice(4).map((list) => list.map(({ name }) => name)),
        );
      }
    });
  }

  it("meets a side whose pair has the layout of all", async () => {
    await using world = await AgentWorld.start(3);
    const shared = [
      { name: "trainer", ranks: [0, 1], placements: ["S(0)"] },
      { name: "engine", ranks: [2], placements: "tensors" },
    ] as const satisfies [Side, Side];
    const clients = await joinPair(world, shared);
    const rows = [0, 1].map((at) => tensor([1, 3], (index) => at * 3 + index));
    const whole = tensor([2, 3]);
    const handlers = await Promise.all([
      ...rows.map((data, at) => clients[0][at]!.registerTensors("b", [[{ data, name: "w" }, "weights"]])),
      clients[1][0]!.registerTensors("b", [
        [{ data: whole, name: "w", layout: layout([1], [2], "R") }, "weights"],
      ]),
    ]);
    const ends = await Promise.all(handlers.map((handler, at) => handler.transfer(at < 2 ? "send" : "recv")));
    await Promise.all(ends.map((end) => end.wait()));
    expect([...arrayOf(whole)]).toEqual([0, 1, 2, 3, 4, 5]);
  });

  it("is refused on every rank of a side for what one of them got wrong", async () => {
    await using world = await AgentWorld.start(6);
    const clients = await joinPair(world, sides);
    const attempt = async (changed: Partial<typeof model>, of?: (held: Held, at: number) => boolean) => {
      const cluster = new Cluster(clients, { ...model, ...changed } as typeof model);
      const all = await Promise.all(cluster.register({ timeoutMs: 3000 }, of).map(failureOf));
      const failures = all.slice(0, trainer.ranks.length);
      expect(new Set(failures.map(({ code, message }) => `${code} ${message}`)).size).toBe(1);
      return failures[0]!;
    };
    const lacking = await attempt({}, ({ name }, at) => !(at === 3 && name === "embed"));
    expect(lacking).toMatchObject({ code: "TB_BATCH_MISMATCH", details: { tensor: "embed", rank: 3 } });
    const odd = {
      shape: [5],
      source: [layout([2], [0, 2], "S(0)"), layout([2], [1, 3], "R")],
      target: [copied],
    };
    expect(await attempt({ norm: odd })).toMatchObject({
      code: "TB_PAIR_MISMATCH",
      details: { tensor: "norm", rank: 1 },
    });
    const overlapping = {
      shape: [5],
      source: [layout([2], [0, 1], "R"), layout([2], [3, 1], "R")],
      target: [copied],
    };
    expect(await attempt({ norm: overlapping })).toMatchObject({ code: "TB_PAIR_MISMATCH" });
    const bias = { shape: [4], source: [layout([4], [0, 1, 2, 3], "S(0)")], target: [split] };
    const wide = await attempt({ bias }, (held) => {
      if (held.name === "bias") Object.assign(held, { layout: layout([2, 2], [0, 1, 2, 3], "S(0)", "S(1)") });
      return held.layout.deviceMesh.ranks.length === 4 || held.name !== "bias";
    });
    expect(wide).toMatchObject({ code: "TB_PLACEMENT", details: { tensor: "bias", placement: "S(1)" } });
    expect(wide.message).toContain("side trainer, tensor bias");
  });

  it("names no layout that its pair does not have, nor one without its rank", async () => {
    await using world = await AgentWorld.start(6);
    const clients = await joinPair(world, sides);
    const cluster = new Cluster(clients, {
      w: { shape: [4], source: [layout([4], [0, 1, 2, 3], "R")], target: [copied] },
    });
    const bare = clients
      .flat()
      .map((client, at) =>
        client.registerTensors(
          "bare",
          [[{ data: tensor([4]), name: "w", ...(at < 4 ? {} : { layout: copied }) }, "weights"]],
          { timeoutMs: 3000 },
        ),
      );
    for (const failure of (await Promise.all(bare.map(failureOf))).slice(0, trainer.ranks.length)) {
      expect(failure).toMatchObject({ code: "TB_PAIR_MISMATCH", details: { tensor: "w" } });
    }
    const foreign = { data: tensor([4]), name: "w", layout: copied };
    expect(await failureOf(clients[0][0]!.registerTensors("b", [[foreign, "weights"]]))).toMatchObject({
      code: "TB_MESH",
      details: { rank: 0 },
    });
    const handlers = await Promise.all(cluster.register());
    expect(await cluster.round(handlers, 1)).toEqual([["w"], ["w"]]);
  });
});

describe("sides with different tensors", () => {
  const extra: typeof model = {
    ...model,
    "layers.0.q_proj.weight": {
      shape: [2],
      source: [stages[0]].map(({ deviceMesh }) => ({ deviceMesh, placements: ["R"] })),
    },
    "layers.0.k_proj.weight": {
      shape: [2],
      source: [stages[0]].map(({ deviceMesh }) => ({ deviceMesh, placements: ["R"] })),
    },
    "layers.1.q_proj.weight": {
      shape: [2],
      source: [stages[1]].map(({ deviceMesh }) => ({ deviceMesh, placements: ["R"] })),
    },
    "layers.1.k_proj.weight": {
      shape: [2],
      source: [stages[1]].map(({ deviceMesh }) => ({ deviceMesh, placements: ["R"] })),
    },
    "heads.rope": { shape: [3], target: [copied] },
  };

  it("are refused with the names that lack, in few words", async () => {
    await using world = await AgentWorld.start(6);
    const cluster = new Cluster(await joinPair(world, sides), extra);
    const failures = await Promise.all(cluster.register().map(failureOf));
    for (const { code, message, details } of failures) {
      expect(code).toBe("TB_BATCH_MISMATCH");
      expect(message).toContain("engine does not have layers.*.{k,q}_proj.weight (4)");
      expect(message).toContain("trainer does not have heads.rope (1)");
      expect(details["lacking"]).toEqual({ engine: 4, trainer: 1 });
    }
  });

  it("move what both have by match common, the target's memory of the rest untouched", async () => {
    await using world = await AgentWorld.start(6);
    for (const commit of ["direct", "staged"] as const) {
      const cluster = new Cluster(
        commit === "direct" ? await joinPair(world, sides) : clientsOf(world),
        extra,
      );
      // One side says it for both.
      const handlers = await Promise.all(
        cluster.register((at) => ({ commit, ...(at < 4 ? { match: "common" as const } : {}) })),
      );
      expect(handlers[0]!.plans.send).toMatchObject({ tensors: Object.keys(model).length });
      const right = await cluster.round(handlers, 3);
      expect(right.flat()).not.toContain("heads.rope");
      expect(right.map((names) => names.length)).toEqual([7, 7]);
      const rope = cluster.held[4]!.find(({ name }) => name === "heads.rope")!;
      expect([...arrayOf(rope.local)]).toEqual([-1, -1, -1]);
      for (const handler of handlers) await handler.close();
    }
  });

  it("move by match target in the direction in which the source has all", async () => {
    await using world = await AgentWorld.start(6);
    const { "heads.rope": _, ...superset } = extra;
    const cluster = new Cluster(await joinPair(world, sides), superset as typeof model);
    const handlers = await Promise.all(cluster.register({ match: "target" }));
    expect(handlers[0]!.plans.recv).toMatchObject({ refused: { code: "TB_BATCH_MISMATCH" } });
    expect((await cluster.round(handlers, 2)).map((names) => names.length)).toEqual([7, 7]);
    const back = await failureOf(handlers[0]!.transfer("recv", { blocking: true }));
    expect(back.message).toContain("does not have layers.*.{k,q}_proj.weight (4)");
    const cluster2 = new Cluster(cluster.clients, {
      w: { shape: [2], source: [fsdp1()] },
      v: { shape: [2], target: [copied] },
    });
    for (const handler of handlers) await handler.close();
    for (const failure of await Promise.all(cluster2.register({ match: "common" }).map(failureOf))) {
      expect(failure).toMatchObject({ code: "TB_BATCH_MISMATCH" });
      expect(failure.message).toContain("no tensor in common");
    }
  });
});

function fsdp1(): ClientLayout {
  return layout([4], [0, 1, 2, 3], "R");
}

function clientsOf(world: AgentWorld): Clients {
  return [world.clients.slice(0, 4), world.clients.slice(4, 6)];
}
