/** What reads other people's bytes in TypeScript, by the name of its target. Those in C are tests of native/test. */
import { sha256 } from "@noble/hashes/sha2.js";
import { checkCommand, pack, unpack } from "../../src/bus/queue/commands.ts";
import { findNotPlain } from "../../src/bus/queue/plain-values.ts";
import { dtypes } from "../../src/layout/index.ts";
import { modelTensors } from "../../src/model/config.ts";
import { headerLength, layOutHeader, parseHeader, prefixBytes } from "../../src/model/safetensors-header.ts";
import { parseSpec } from "../../src/model/spec.ts";
import {
  DeviceMesh,
  Partial,
  Plan,
  planTransfer,
  Replicate,
  Shard,
  StridedShard,
} from "../../src/plan/index.ts";
import { visible } from "../../src/visible.ts";
import { refusing, type Target } from "./kit/target.ts";
import { dcp, layout } from "./targets/checkpoint.ts";
import { etcd } from "./targets/etcd.ts";
import { lmdb } from "./targets/lmdb.ts";
import { storeClient, storeServer } from "./targets/store.ts";

const text = (value: string) => Buffer.from(value);

const messages: Target = {
  seeds: () => [
    pack({
      a: [1, -1, 2 ** 40, 1.5, true, null],
      b: { c: Uint8Array.of(1, 2), d: 2n ** 63n },
      e: "ü".repeat(40),
    }),
    pack(Array.from({ length: 20 }, (_, index) => ({ [`k${index}`]: index }))),
    pack({ type: "Cancel", id: "x", client: "y", deadline: 1n, target: 1 }),
  ],
  run(input) {
    const wrong = findNotPlain(input);
    return refusing(() => {
      const value = unpack(input);
      // Whoever is let through is plain data, which comes back as it was.
      if (wrong !== undefined) throw new Error(`${wrong}, and it was read`);
      unpack(pack(value));
      checkCommand(unpack(input));
    });
  },
};

/** The check sum is made right, so that the reader gets beyond it. */
const plan: Target = {
  async seeds() {
    const mesh = new DeviceMesh([2, 2]);
    const plans = [
      await planTransfer({
        pairs: {
          w: {
            source: { mesh, placements: [Shard(0), Replicate()] },
            target: { mesh: new DeviceMesh([3], { ranks: [4, 5, 6] }), placements: [Shard(1)] },
          },
          p: {
            source: { mesh, placements: [Partial("avg"), StridedShard(0, 2)], stridedShard: "split" },
            target: {
              mesh: new DeviceMesh([2], { ranks: [7, 9] }),
              placements: [Shard(0, { sizes: [5, 11] })],
            },
          },
        },
        tensors: [
          { name: "layers.0.up", pair: "w", shape: [12, 24], dtype: "float32", targetDtype: "bfloat16" },
          { name: "layers.1.up", pair: "w", shape: [12, 24], dtype: "float32" },
          { name: "layers.1.norm", pair: "p", shape: [16], dtype: "float32" },
        ],
        topology: { ranksPerHost: 2, hostMBps: 1000, networkMBps: 100, latencyUs: 5 },
      }),
    ];
    return plans.map(({ bytes }) => bytes);
  },
  run(input) {
    if (input.length > 16) input.set(sha256(input.subarray(0, -16)).subarray(0, 16), input.length - 16);
    return refusing(() => {
      const read = Plan.load(input);
      if (!Buffer.from(read.bytes).equals(input)) throw new Error("another plan was read than is written");
    });
  },
};

const safetensors: Target = {
  seeds: () => [
    layOutHeader(
      dtypes.slice(0, 8).map((dtype, index) => ({ name: `layer.${index}`, shape: [index, 4], dtype })),
      { format: "pt" },
      "file",
    ).head,
  ],
  run: (input) =>
    refusing(() => {
      const fileBytes = 2 ** 20;
      const length = headerLength(input.subarray(0, prefixBytes), fileBytes, "file");
      const { entries } = parseHeader(input.subarray(prefixBytes, prefixBytes + length), fileBytes, "file");
      for (const { position, bytes } of entries) {
        if (position < prefixBytes || position + bytes > fileBytes)
          throw new Error("a tensor beyond its file");
      }
    }),
};

const spec: Target = {
  seeds: () => [
    text(`version: 1
model:
  tensors:
    - { name: layers.0.experts.3.up, shape: [64, 32], dtype: float32 }
    - { name: layers.0.q, shape: [64, 32], dtype: float32 }
source: { name: trainer, mesh: [2, 2], ranks: 0..3 }
target: { name: inference, mesh: [4], ranks: [4..6, 9] }
placements:
  - { match: 'experts\\.(\\d+)\\.', source: [S(0), R], target: { placements: [R], select: { dim: 0, index: $1, of: 16 } } }
  - { match: '.*', source: [S(0), R], target: [S(1)] }
targetDtype: [{ match: q, dtype: bfloat16 }]
bucketBytes: 8MiB
topology: { ranksPerHost: 2, hostMBps: 450000, networkMBps: 50000, latencyUs: 5 }
budget: { rankEgressBytes: 20GiB, imbalance: 1.05 }
`),
    text("a: &a [1, *b]\nb: >-\n  x\n? [c]\n: !!binary AA==\n"),
  ],
  run: (input) => refusing(() => parseSpec(input.toString("latin1"), "/nowhere/spec.yaml")),
};

const config: Target = {
  seeds: () => [
    text(
      JSON.stringify({
        model_type: "llama",
        architectures: ["LlamaForCausalLM"],
        hidden_size: 64,
        intermediate_size: 128,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        vocab_size: 100,
        tie_word_embeddings: false,
        torch_dtype: "bfloat16",
      }),
    ),
  ],
  run: (input) => refusing(() => modelTensors(input.toString("latin1"))),
};

const shown: Target = {
  seeds: () => [text("layers.0\u001b[31m\u202eq\u2066\n\t"), text("größe 🙂")],
  run(input) {
    const seen = visible(input.toString("utf8"));
    if (/(?![\t\n])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u.test(seen)) throw new Error("something unseen is left");
    if (visible(seen) !== seen) throw new Error("what is visible changes again");
  },
};

export const targets: Readonly<Record<string, Target>> = {
  messages,
  plan,
  safetensors,
  spec,
  config,
  visible: shown,
  "store-server": storeServer,
  "store-client": storeClient,
  etcd,
  lmdb,
  dcp,
  layout,
};
