/** What the ranks of a batch tell each other through the store. Tensors come as kinds: a model has few of those. */
import { createHash } from "node:crypto";
import { deflateSync, inflateSync } from "node:zlib";
import * as z from "zod";
import { TensorBusError } from "../../errors.ts";
import { dtypeNumber, dtypes } from "../../layout/index.ts";
import { keyPart, recordVersion } from "../pair/rendezvous.ts";
import { type BatchId, batchKey, layoutSchema } from "../queue/commands.ts";
import { compareNames, type TensorName } from "./names.ts";
import type { TensorTable } from "./tensor-kinds.ts";

const maxTensors = 1_000_000;
const rank = z
  .int()
  .min(0)
  .max(2 ** 20 - 1);
const nonce = z.bigint().min(0n);
const sizes = z.array(z.int().min(0)).max(64);

const pairSchema = z.strictObject({
  pair: z.string(),
  local: z.string(),
  remote: z.string(),
  /** `layoutDigest` of both sides, as this one knows them. */
  localLayout: z.string(),
  remoteLayout: z.string(),
});
export type BatchPair = z.infer<typeof pairSchema>;

const namesSchema = z.strictObject({
  count: z.int().min(1).max(maxTensors),
  /** A digest of pairs and names of all tensors, in their order. */
  digest: z.string(),
});

const tableSchema = z.strictObject({
  /** Index of the pair, number of the type, shape, the global shape if it was said, index of the layout if it has one. */
  kinds: z
    .array(
      z.tuple([z.int().min(0), z.int().min(0).max(255), sizes, sizes.nullable(), z.int().min(0).nullable()]),
    )
    .max(maxTensors),
  /** The kind of each tensor: u32 little-endian, deflated. */
  kindOf: z.instanceof(Uint8Array),
});
type TableMessage = z.infer<typeof tableSchema>;

const refusalSchema = z.strictObject({ code: z.string(), message: z.string(), rank });

const common = {
  version: z.literal(recordVersion),
  generation: nonce,
  pairs: z.array(pairSchema).min(1),
  bucketBytes: z.int().min(1),
  commit: z.enum(["direct", "staged"]),
  /** `PlanningRecord`. */
  planning: z.record(z.string(), z.string()),
  names: namesSchema,
  /** Those that kinds of the tables name. */
  layouts: z.array(layoutSchema),
  match: z.enum(["exact", "target", "common"]).optional(),
};

/** What one rank registers. */
export const rankSchema = z.strictObject({
  ...common,
  rank,
  nonce,
  table: tableSchema,
  /**
   * It holds tensors that other ranks of the side do not, by their layouts, and has published the names of its own. The
   * other tensors of a rank are those that all ranks of its side hold.
   */
  partial: z.boolean(),
  /** Why its tensors cannot be received into. */
  refusal: refusalSchema.optional(),
});
export type RankRecord = z.infer<typeof rankSchema>;

/** What a side registers, as its leader has put it together. */
export const batchSideSchema = z.strictObject({
  ...common,
  leader: rank,
  members: z.array(z.strictObject({ rank, nonce })).min(1),
  /** With global shapes; which one each member has. */
  tables: z.array(tableSchema),
  tableOf: z.array(z.int().min(0)),
  refusal: refusalSchema.optional(),
  failure: z
    .strictObject({ code: z.string(), message: z.string(), details: z.record(z.string(), z.unknown()) })
    .optional(),
});
export type BatchSideRecord = z.infer<typeof batchSideSchema>;

export const tensorNamesSchema = z.array(z.tuple([z.int().min(0), z.string()])).max(maxTensors);

/** What a voter says of a direction's staged rounds to those whose store has forgotten them. */
export function testimonyKey(registration: string, from: string, rank: number): string {
  return `bus/testimony/${registration}/${keyPart(from)}/${rank}`;
}

/** Stands while one of the voters takes back what all have said there. */
export function withdrawalKey(registration: string, from: string): string {
  return `bus/testimony/${registration}/${keyPart(from)}/withdrawn`;
}

/** Keys of a batch in the store. */
export class BatchKeys {
  readonly #prefix: string;

  constructor(id: BatchId) {
    this.#prefix = `bus/batch/${keyPart(batchKey(id))}`;
  }

  /** The number of a registration up to which all have ended, as far as that was noted. */
  get latest(): string {
    return `${this.#prefix}/latest`;
  }
  rank(number: number, side: string, rank: number): string {
    return `${this.#at(number)}/${keyPart(side)}/rank/${rank}`;
  }
  side(number: number, side: string): string {
    return `${this.#at(number)}/${keyPart(side)}/side`;
  }
  names(number: number, side: string): string {
    return `${this.#at(number)}/${keyPart(side)}/names`;
  }
  /** The key of one rank's tensors, if they are not those of all ranks. */
  rankNames(number: number, side: string, rank: number): string {
    return `${this.#at(number)}/${keyPart(side)}/names/${rank}`;
  }
  /** Everything of the rounds from one side. */
  rounds(number: number, sourceSide: string): string {
    return `${this.#at(number)}/${keyPart(sourceSide)}/rounds`;
  }
  /** What the ranks of this registration tell each other of failed rounds and of its end: `RoundLog`. */
  log(number: number): string {
    return `${this.#at(number)}/log`;
  }
  /** How many ranks have prepared it, and that all have. */
  prepared(number: number): string {
    return `${this.#at(number)}/prepared`;
  }
  ready(number: number): string {
    return `${this.#at(number)}/ready`;
  }
  /** The key of the ranks that wait, and of their directions: `Opposition`. */
  waiting(number: number): string {
    return `${this.#at(number)}/waiting`;
  }
  /** How many ranks have left it. */
  left(number: number): string {
    return `${this.#at(number)}/left`;
  }
  /** The name of the transfer from one side, for the transport. */
  transfer(number: number, sourceSide: string): string {
    return `${this.#at(number)}/${keyPart(sourceSide)}`;
  }
  #at(number: number): string {
    return `${this.#prefix}/${number}`;
  }
}

export function encodeTable({ kinds, kindOf }: TensorTable): TableMessage {
  return {
    kinds: kinds.map(({ pair, dtype, shape, globalShape, layout }) => [
      pair,
      dtypeNumber(dtype),
      [...shape],
      globalShape === undefined ? null : [...globalShape],
      layout ?? null,
    ]),
    kindOf: deflateSync(Buffer.from(kindOf.buffer, kindOf.byteOffset, kindOf.byteLength), { level: 1 }),
  };
}

/** The table in a record that also says how many tensors, pairs and layouts there are; `TB_VERSION` if it does not fit. */
export function decodeTable(
  { kinds, kindOf }: TableMessage,
  { names: { count }, pairs, layouts }: Pick<RankRecord, "names" | "pairs" | "layouts">,
): TensorTable {
  const malformed = (what: string) =>
    new TensorBusError("TB_VERSION", `the record of a batch is malformed: ${what}`);
  let bytes: Buffer;
  try {
    bytes = inflateSync(kindOf, { maxOutputLength: count * 4 });
  } catch (cause) {
    throw malformed((cause as Error).message);
  }
  if (bytes.length !== count * 4) throw malformed(`${bytes.length / 4} of ${count} tensors`);
  const words = new Uint32Array(Uint8Array.from(bytes).buffer);
  if (words.some((kind) => kind >= kinds.length)) throw malformed("a tensor has a kind that does not exist");
  return {
    kindOf: words,
    kinds: kinds.map(([pair, number, shape, globalShape, layout]) => {
      const dtype = dtypes[number];
      if (dtype === undefined || pair >= pairs.length || (layout ?? -1) >= layouts.length)
        throw malformed(
          `a tensor has type ${number}, pair ${pair} and layout ${layout}, one of which does not exist`,
        );
      return {
        pair,
        dtype,
        shape,
        ...(globalShape === null ? {} : { globalShape }),
        ...(layout === null ? {} : { layout }),
      };
    }),
  };
}

/** A record whose digest is that of a known list may still lie about its length, which is that of its table: `TB_VERSION`. */
export function requireCount(
  list: readonly TensorName[],
  { names: { count } }: Pick<RankRecord, "names">,
): void {
  if (list.length === count) return;
  throw new TensorBusError(
    "TB_VERSION",
    `the record of a batch is malformed: it tells of ${count} names, and its list has ${list.length}`,
    { details: { count, value: list.length } },
  );
}

/**
 * Checks names that a rank has read against the record that tells of them: lists are walked side by side, so that one out of
 * order, or of another length than its table, would match the wrong tensors. `TB_VERSION` if they do not fit.
 */
export function requireNames(
  names: readonly TensorName[],
  { names: { count, digest }, pairs }: Pick<RankRecord, "names" | "pairs">,
): void {
  const isSorted = names.every(
    (each, index) => each.pair < pairs.length && (index === 0 || compareNames(names[index - 1]!, each) < 0),
  );
  if (names.length === count && isSorted && namesDigest(names, pairs) === digest) return;
  throw new TensorBusError(
    "TB_VERSION",
    `the record of a batch is malformed: its ${count} names are not those that were published beside it`,
    { details: { count, value: names.length } },
  );
}

/** A digest of pairs (by their names) and names, in their order. */
export function namesDigest(tensors: Iterable<TensorName>, pairs: readonly BatchPair[]): string {
  const hash = createHash("sha256");
  const lines: string[] = [];
  for (const { pair, name } of tensors)
    lines.push(`${JSON.stringify(pairs[pair]!.pair)}${JSON.stringify(name)}`);
  return hash.update(lines.join("\n")).digest("hex");
}
