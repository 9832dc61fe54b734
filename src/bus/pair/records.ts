/** What the ranks of a pair tell each other through the store, and how a side becomes one. */
import { createHash } from "node:crypto";
import * as z from "zod";
import { TensorBusError } from "../../errors.ts";
import { DeviceMesh, type Layout, parsePlacement } from "../../layout/index.ts";
import { type LayoutMessage, pack, type SideLayout, sideLayoutSchema } from "../queue/commands.ts";
import { keyPart, recordVersion } from "./rendezvous.ts";

/** One side of a pair, as a rank of it sees it. */
export interface SideSpec {
  readonly pair: string;
  readonly local: string;
  readonly remote: string;
  readonly worldSize: number;
  readonly layout?: SideLayout | undefined;
}

const name = z.string().min(1).max(4096);
const rank = z
  .int()
  .min(0)
  .max(2 ** 20 - 1);
const generation = z.bigint().min(0n);

/** One rank of a side. */
export const memberSchema = z.strictObject({
  version: z.literal(recordVersion),
  rank,
  generation,
  nonce: z.bigint().min(0n),
  remote: name,
  worldSize: z.int().min(1),
  layout: sideLayoutSchema.optional(),
});
export type MemberRecord = z.infer<typeof memberSchema>;

const failureSchema = z.strictObject({
  code: z.enum(["TB_PAIR_MISMATCH"]),
  message: z.string(),
  details: z.record(z.string(), z.unknown()),
});

/** A side, as the rank that holds its first slot has found it. */
export const sideSchema = z.strictObject({
  version: z.literal(recordVersion),
  leader: rank,
  generation,
  remote: name,
  /** In the order that layout-less tensors follow: ascending, or that of the mesh. */
  ranks: z.array(rank).min(1),
  nonces: z.array(z.bigint()),
  layout: sideLayoutSchema.optional(),
  failure: failureSchema.optional(),
});
export type SideRecord = z.infer<typeof sideSchema>;

/** The agent that runs a rank now: records of an earlier generation are left-overs. */
export const agentSchema = z.strictObject({ version: z.literal(recordVersion), generation });

export const agentKey = (rank: number) => `bus/agent/${rank}`;
const sideKey = (pair: string, side: string) => `bus/pair/${keyPart(pair)}/${keyPart(side)}`;
export const slotKey = (pair: string, side: string, slot: number) => `${sideKey(pair, side)}/slot/${slot}`;
export const sideRecordKey = (pair: string, side: string) => `${sideKey(pair, side)}/side`;

/** Equal for specs that say the same of a side. */
export function layoutDigest(layout: SideLayout | undefined): string {
  const canonical =
    typeof layout === "object"
      ? [layout.mesh.shape, layout.mesh.ranks, layout.placements, layout.stridedShard ?? null]
      : (layout ?? null);
  return createHash("sha256").update(pack(canonical)).digest("hex");
}

/** The layout that all tensors of a side share; `undefined` if it has none, or if each tensor has its own. */
export function sharedLayout(layout: SideLayout | undefined): LayoutMessage | undefined {
  return typeof layout === "object" ? layout : undefined;
}

export function layoutOf(message: LayoutMessage): Layout {
  const { mesh, placements, stridedShard } = message;
  const names = mesh.dimNames === undefined ? {} : { dimNames: mesh.dimNames };
  return {
    mesh: new DeviceMesh(mesh.shape, { ranks: mesh.ranks, ...names }),
    placements: placements.map(parsePlacement),
    ...(stridedShard === undefined ? {} : { stridedShard }),
  };
}

/** The order in which ranks count: that of the mesh, else ascending. */
export function orderRanks(ranks: readonly number[], layout: SideLayout | undefined): number[] {
  return sharedLayout(layout)?.mesh.ranks.slice() ?? [...ranks].sort((a, b) => a - b);
}

/** Fields in which members of one side must agree, as they are shown to people. */
function claimsOf(member: MemberRecord): Record<string, string> {
  const layout = sharedLayout(member.layout);
  const none = member.layout === "tensors" ? "each tensor's own" : "none";
  return {
    remote: member.remote,
    worldSize: String(member.worldSize),
    mesh: layout?.mesh.shape.join(" x ") ?? none,
    ranks: layout?.mesh.ranks.join(",") ?? none,
    placements: layout?.placements.join(", ") ?? none,
    stridedShard: layout?.stridedShard ?? "none",
  };
}

/** The first member that says something else than most, and what; `undefined` if all agree. */
export function findOdd(
  pair: string,
  side: string,
  members: readonly MemberRecord[],
): TensorBusError | undefined {
  const groups = new Map<string, MemberRecord[]>();
  for (const member of members) {
    const key = JSON.stringify(claimsOf(member));
    groups.set(key, [...(groups.get(key) ?? []), member]);
  }
  if (groups.size === 1) return undefined;
  // The first of the largest, in the order of the slots.
  const most = [...groups.values()].reduce((best, group) => (group.length > best.length ? group : best));
  const odd = members.find((member) => !most.includes(member))!;
  const [says, others] = [claimsOf(odd), claimsOf(most[0]!)];
  const field = Object.keys(says).find((key) => says[key] !== others[key])!;
  return new TensorBusError(
    "TB_PAIR_MISMATCH",
    `pair ${pair}, side ${side}: ${field} of rank ${odd.rank} is ${says[field]}, but rank ${most[0]!.rank} has ${others[field]}`,
    { details: { pair, side, rank: odd.rank, field, value: says[field], expected: others[field] } },
  );
}
