import { describe, expect, it } from "vitest";
import {
  DeviceMesh,
  type ErrorCode,
  type Layout,
  Partial,
  type Placement,
  type PlanInput,
  planTransfer,
  Replicate,
  Shard,
  StridedShard,
  TensorBusError,
  type TensorInput,
} from "../../src/plan/index.ts";

const mesh = new DeviceMesh([4]);
const square = new DeviceMesh([2, 2]);
const replicated: Layout = { mesh, placements: [Replicate()] };
const tensor: TensorInput = { name: "w", pair: "p", shape: [8, 6], dtype: "float32" };

function input(changes: { source?: Layout; target?: Layout; tensor?: object; plan?: object }): PlanInput {
  return {
    pairs: { p: { source: changes.source ?? replicated, target: changes.target ?? replicated } },
    tensors: [{ ...tensor, ...changes.tensor } as TensorInput],
    ...changes.plan,
  };
}

async function failure(of: PlanInput): Promise<TensorBusError> {
  const error: unknown = await planTransfer(of).then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(TensorBusError);
  return error as TensorBusError;
}

const on = (placements: readonly unknown[], layoutMesh = mesh): Layout => ({
  mesh: layoutMesh,
  placements: placements as readonly Placement[],
});

const withLinks = (links: unknown) =>
  input({ plan: { topology: { ranksPerHost: 2, hostMBps: 1, networkMBps: 1, latencyUs: 0, links } } });

const cases: readonly (readonly [string, ErrorCode, PlanInput])[] = [
  ["too few placements", "TB_PLACEMENT", input({ source: on([Shard(0)], square) })],
  ["too many placements", "TB_PLACEMENT", input({ source: on([Shard(0), Replicate()]) })],
  ["a dimension at the end", "TB_PLACEMENT", input({ source: on([Shard(2)]) })],
  ["a dimension beyond the end", "TB_PLACEMENT", input({ target: on([Shard(5)]) })],
  ["a dimension before the start", "TB_PLACEMENT", input({ source: on([Shard(-3)]) })],
  ["the alias that torch accepts", "TB_PLACEMENT", input({ source: on([StridedShard(-3, 2)]) })],
  ["a far negative dimension", "TB_PLACEMENT", input({ source: on([Shard(-7)]) })],
  ["a sharded scalar", "TB_PLACEMENT", input({ source: on([Shard(0)]), tensor: { shape: [] } })],
  ["a split factor of 0", "TB_PLACEMENT", input({ source: on([StridedShard(0, 0)]) })],
  ["a placement that is text", "TB_PLACEMENT", input({ source: on(["S(0)"]) })],
  ["a placement that is null", "TB_PLACEMENT", input({ source: on([null]) })],
  ["an unknown operator", "TB_PARTIAL_OP", input({ source: on([{ kind: "partial", op: "mean" }]) })],
  ["mixed operators", "TB_PARTIAL_OP", input({ source: on([Partial("max"), Partial("sum")], square) })],
  ["avg of integers", "TB_PARTIAL_OP", input({ source: on([Partial("avg")]), tensor: { dtype: "int32" } })],
  ["avg of bool", "TB_PARTIAL_OP", input({ source: on([Partial("avg")]), tensor: { dtype: "bool" } })],
  ["a Partial target", "TB_PARTIAL_TARGET", input({ target: on([Partial("sum")]) })],
  ["an unknown type", "TB_DTYPE", input({ tensor: { dtype: "float12" } })],
  ["an unknown target type", "TB_DTYPE", input({ tensor: { targetDtype: "float12" } })],
  ["nine dimensions", "TB_SHAPE", input({ tensor: { shape: new Array(9).fill(1) } })],
  ["a negative size", "TB_SHAPE", input({ tensor: { shape: [-1] } })],
  ["a fractional size", "TB_SHAPE", input({ tensor: { shape: [1.5] } })],
  ["a shape that is no array", "TB_SHAPE", input({ tensor: { shape: 3 } })],
  ["more than 2^62 bytes", "TB_SHAPE", input({ tensor: { shape: [2 ** 40, 2 ** 21] } })],
  ["no mesh", "TB_MESH", input({ source: { placements: [] } as unknown as Layout })],
  ["a selection outside", "TB_MESH", input({ tensor: { source: { select: { dim: 1, index: 0, of: 2 } } } })],
  [
    "a selected index too high",
    "TB_MESH",
    input({ tensor: { source: { select: { dim: 0, index: 2, of: 2 } } } }),
  ],
  [
    "a selection of nothing",
    "TB_MESH",
    input({ tensor: { target: { select: { dim: 0, index: 0, of: 0 } } } }),
  ],
  ["an unknown pair", "TB_PLAN_INPUT", input({ tensor: { pair: "q" } })],
  ["an inherited pair", "TB_PLAN_INPUT", input({ tensor: { pair: "toString" } })],
  ["a name that is no text", "TB_PLAN_INPUT", input({ tensor: { name: 3 } })],
  ["half of a surrogate pair", "TB_PLAN_INPUT", input({ tensor: { name: "\ud800" } })],
  ["a misspelled key of a tensor", "TB_PLAN_INPUT", input({ tensor: { targetDType: "float32" } })],
  ["a misspelled key of a side", "TB_PLAN_INPUT", input({ tensor: { source: { selects: {} } } })],
  ["a misspelled option", "TB_PLAN_INPUT", input({ plan: { bucketByte: 4096 } })],
  ["a bucket too small", "TB_PLAN_INPUT", input({ plan: { bucketBytes: 4095 } })],
  ["a bucket too large", "TB_PLAN_INPUT", input({ plan: { bucketBytes: 2 ** 30 + 1 } })],
  ["no bucket in flight", "TB_PLAN_INPUT", input({ plan: { bucketsInFlight: 0 } })],
  ["no peer in flight", "TB_PLAN_INPUT", input({ plan: { peersInFlight: 0 } })],
  ["an unknown strategy", "TB_PLAN_INPUT", input({ plan: { strategy: "fast" } })],
  [
    "no host",
    "TB_TOPOLOGY",
    input({ plan: { strategy: "direct", topology: { hostMBps: 1, networkMBps: 1, latencyUs: 0 } } }),
  ],
  ["links that are no list", "TB_TOPOLOGY", withLinks({})],
  ["a link between three hosts", "TB_TOPOLOGY", withLinks([{ hosts: [0, 1, 2], MBps: 1 }])],
  ["a link of no speed", "TB_TOPOLOGY", withLinks([{ hosts: [0, 1], MBps: 0 }])],
  ["a link to no host", "TB_TOPOLOGY", withLinks([{ hosts: [0, -1], MBps: 5 }])],
  [
    "a link that is named twice",
    "TB_TOPOLOGY",
    withLinks([
      { hosts: [0, 1], MBps: 5 },
      { hosts: [1, 0], MBps: 5 },
    ]),
  ],
  [
    "too few hosts",
    "TB_TOPOLOGY",
    input({
      plan: { strategy: "direct", topology: { hosts: [0], hostMBps: 1, networkMBps: 1, latencyUs: 0 } },
    }),
  ],
];

describe("bad input", () => {
  it.each(cases)("%s is %s", async (_, code, of) => {
    const error = await failure(of);
    expect(error.code).toBe(code);
    expect(Object.keys(error.details).length).toBeGreaterThan(0);
  });

  it("names the place and the value", async () => {
    const error = await failure(input({ source: on([Shard(5)]) }));
    expect(error.message).toContain('"w"');
    expect(error.message).toContain("S(5)");
    expect(error.details).toMatchObject({ tensor: "w", placement: "S(5)", ndim: 2 });
  });

  it("is found in a later tensor of a kind that is already known", async () => {
    const good = { ...tensor, source: { select: { dim: 0, index: 1, of: 4 } } };
    const bad = { ...tensor, source: { select: { dim: 0, index: 4, of: 4 } } };
    const error = await failure({
      pairs: { p: { source: replicated, target: replicated } },
      tensors: [good, bad],
    });
    expect(error.code).toBe("TB_MESH");
    const odd = { ...tensor, source: { select: { dim: 0, index: 1, of: 4, extra: 1 } } };
    const other = await failure({
      pairs: { p: { source: replicated, target: replicated } },
      tensors: [good, odd as TensorInput],
    });
    expect(other.code).toBe("TB_PLAN_INPUT");
  });
});

describe("strided shards", () => {
  const wide = new DeviceMesh([3, 2]);
  const both = [StridedShard(0, 2), Shard(0)];

  it("are an error where their readings differ and none is named", async () => {
    const error = await failure(input({ source: { mesh: wide, placements: both }, tensor: { shape: [7] } }));
    expect(error.code).toBe("TB_STRIDED_SHARD");
    expect(error.details).toMatchObject({ tensor: "w", side: "source", dim: 0, shape: [7] });
  });

  it("are none where the readings agree for the planned shape", async () => {
    await planTransfer(input({ source: { mesh: wide, placements: both }, tensor: { shape: [12] } }));
  });

  it("take the reading of the layout, and before it the tensor's own", async () => {
    const shape = [7];
    const plan = async (stridedShard: "split" | "order", own?: "split" | "order") =>
      [
        ...(
          await planTransfer(
            input({
              source: { mesh: wide, placements: both, stridedShard },
              tensor: { shape, ...(own === undefined ? {} : { source: { stridedShard: own } }) },
            }),
          )
        ).chunks(),
      ].map(({ srcRank, dstOffsets }) => `${srcRank}@${dstOffsets}`);
    expect(await plan("split")).not.toEqual(await plan("order"));
    expect(await plan("split", "order")).toEqual(await plan("order"));
  });

  it("are an error in the order reading where no order fits", async () => {
    const odd: Layout = { mesh, placements: [StridedShard(0, 3)], stridedShard: "order" };
    expect((await failure(input({ source: odd }))).code).toBe("TB_STRIDED_SHARD");
    await planTransfer(input({ source: { ...odd, stridedShard: "split" } }));
  });
});

describe("strides of a program", () => {
  const bad: readonly (readonly [string, readonly number[]])[] = [
    ["negative", [-6, 1]],
    ["too few", [6]],
    ["fractional", [6, 0.5]],
    ["out of range", [2 ** 52, 2 ** 52]],
    ["of a target whose elements share memory", [0, 1]],
  ];
  it.each(bad)("that are %s are TB_STRIDES", async (_, target) => {
    const shape = [8, 2 ** 10];
    const plan = await planTransfer(input({ tensor: { shape } }));
    expect(() => plan.program(0, { strides: { 0: { target } } })).toThrowError(
      expect.objectContaining({ code: "TB_STRIDES" }),
    );
  });

  it("of a tensor that is not there are TB_STRIDES", async () => {
    const plan = await planTransfer(input({}));
    expect(() => plan.program(0, { strides: { 1: { target: [6, 1] } } })).toThrowError(
      expect.objectContaining({ code: "TB_STRIDES" }),
    );
  });
});
