/** A rank's registration of a batch, as it tells the others. */
import { randomBytes } from "node:crypto";
import type { PlanOptions } from "../../plan/index.ts";
import type { MetPair } from "../pair/meeting.ts";
import type { PairSide } from "../pair/pairs.ts";
import { layoutDigest } from "../pair/records.ts";
import { recordVersion } from "../pair/rendezvous.ts";
import { type CommandOf, type LayoutMessage, normalizeBatchId } from "../queue/commands.ts";
import type { BatchSide } from "./batch.ts";
import { refuseTargets, tableOf } from "./local-tensors.ts";
import type { RankRegistration } from "./meeting.ts";
import { recordPlanning } from "./planning.ts";
import { BatchKeys, encodeTable, namesDigest, type RankRecord } from "./records.ts";

/** Used if the client names none: the planner's default. */
const defaultBucketBytes = 8 * 2 ** 20;

interface RegistrationSelf {
  readonly rank: number;
  readonly generation: bigint;
  /** For clients that name none. */
  readonly commit: "direct" | "staged";
  readonly planning: PlanOptions;
}

/** What this rank says of its tensors. */
export function makeRankRegistration(
  self: RegistrationSelf,
  { tensors, places }: BatchSide,
  sides: readonly PairSide[],
  mets: readonly MetPair[],
  {
    bucketBytes = defaultBucketBytes,
    commit = self.commit,
    batch,
    layouts = [],
    match,
  }: CommandOf<"RegisterTensors">,
): RankRegistration {
  const { rank, generation } = self;
  const id = normalizeBatchId(batch);
  const refusal = refuseTargets(tensors, places);
  const pairs = sides.map(({ spec: { pair, local, remote } }, index) => ({
    pair,
    local,
    remote,
    localLayout: layoutDigest(mets[index]!.local.layout),
    remoteLayout: layoutDigest(mets[index]!.remote.layout),
  }));
  const names = tensors.map(({ pair, name }) => ({ pair, name }));
  const record: RankRecord = {
    version: recordVersion,
    rank,
    generation,
    nonce: randomBytes(8).readBigUInt64LE(),
    pairs,
    bucketBytes,
    commit,
    planning: recordPlanning(self.planning),
    names: { count: tensors.length, digest: namesDigest(names, pairs) },
    layouts,
    ...(match === undefined ? {} : { match }),
    table: encodeTable(tableOf(tensors)),
    partial: isPartial(tensors, layouts, mets),
    ...(refusal === undefined ? {} : { refusal: { ...refusal, rank } }),
  };
  return { batch: String(id), keys: new BatchKeys(id), record, pairs: mets, names };
}

/** True if some tensor's layout leaves ranks of the side out. */
function isPartial(
  tensors: BatchSide["tensors"],
  layouts: readonly LayoutMessage[],
  mets: readonly MetPair[],
): boolean {
  const sizes = layouts.map(({ mesh }) => mesh.ranks.length);
  return tensors.some(
    ({ pair, layout }) => layout !== undefined && sizes[layout]! < mets[pair]!.local.ranks.length,
  );
}
