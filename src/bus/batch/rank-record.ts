/** A rank's registration of a batch, as it tells the others. */
import { randomBytes } from "node:crypto";
import type { Deadline } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { PlanOptions } from "../../plan/index.ts";
import type { MetPair } from "../pair/meeting.ts";
import type { PairSide } from "../pair/pairs.ts";
import { layoutDigest } from "../pair/records.ts";
import { type Rendezvous, recordVersion } from "../pair/rendezvous.ts";
import { type CommandOf, normalizeBatchId } from "../queue/commands.ts";
import type { BatchSide } from "./batch.ts";
import { refuseTargets, tableOf } from "./local-tensors.ts";
import { type MetBatch, type RankRegistration, readNames } from "./meeting.ts";
import { recordPlanning } from "./planning.ts";
import { BatchKeys, encodeTable, namesDigest, type RankRecord } from "./records.ts";

/** Of a batch whose client names none: the planner's default. */
const defaultBucketBytes = 8 * 2 ** 20;

export interface RegistrationSelf {
  readonly rank: number;
  readonly generation: bigint;
  /** For who names none. */
  readonly commit: "direct" | "staged";
  readonly planning: PlanOptions;
}

/** What this rank says of its tensors. */
export function makeRankRegistration(
  self: RegistrationSelf,
  { tensors, places }: BatchSide,
  sides: readonly PairSide[],
  mets: readonly MetPair[],
  { bucketBytes = defaultBucketBytes, commit = self.commit, batch }: CommandOf<"RegisterTensors">,
): RankRegistration {
  const { rank, generation } = self;
  const id = normalizeBatchId(batch);
  const refusal = refuseTargets(tensors, places);
  const record: RankRecord = {
    version: recordVersion,
    rank,
    generation,
    nonce: randomBytes(8).readBigUInt64LE(),
    pairs: sides.map(({ spec: { pair, local, remote } }, index) => ({
      pair,
      local,
      remote,
      localLayout: layoutDigest(mets[index]!.local.layout),
      remoteLayout: layoutDigest(mets[index]!.remote.layout),
    })),
    bucketBytes,
    commit,
    planning: recordPlanning(self.planning),
    names: {
      count: tensors.length,
      digest: namesDigest(tensors.map(({ pair, name }) => ({ pair: sides[pair]!.spec.pair, name }))),
    },
    table: encodeTable(tableOf(tensors)),
    ...(refusal === undefined ? {} : { refusal: { ...refusal, rank } }),
  };
  const names = tensors.map(({ pair, name }) => ({ pair, name }));
  return { batch: String(id), keys: new BatchKeys(id), record, pairs: mets, names };
}

/** Both sides name the same tensors; the first that only one of them has is told. */
export async function requireSameNames(
  rendezvous: Rendezvous,
  { keys, names, record, batch }: RankRegistration,
  { number, local, remote }: MetBatch,
  deadline: Deadline,
): Promise<void> {
  if (local.names.digest === remote.names.digest || local.names.count !== remote.names.count) return;
  const other = record.pairs[0]!.remote;
  const theirs = await readNames(rendezvous, keys, number, other, deadline);
  const index = names.findIndex(
    ({ pair, name }, at) => theirs?.[at]?.[0] !== pair || theirs[at]?.[1] !== name,
  );
  const [is, expected] = [names[index]?.name, theirs?.[index]?.[1]];
  const { pair } = record.pairs[names[index]?.pair ?? 0]!;
  throw new TensorBusError(
    "TB_BATCH_MISMATCH",
    `batch ${batch}, pair ${pair}: tensor ${is} of side ${record.pairs[0]!.local} stands where side ${other} (rank ${remote.leader}) has ${expected}`,
    { details: { batch, pair, rank: remote.leader, tensor: is, value: is, expected } },
  );
}
