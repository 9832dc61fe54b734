/** How `count` slots are dealt over `owners` coordinates. */
export interface Deal {
  readonly count: number;
  readonly owners: number;
  readonly roundRobin: boolean;
}

/** The coordinate that has a slot. */
export function ownerOf({ count, owners, roundRobin }: Deal, slot: number): number {
  if (roundRobin) return slot % owners;
  const each = Math.floor(count / owners);
  const more = count % owners;
  const withMore = more * (each + 1);
  return slot < withMore ? Math.floor(slot / (each + 1)) : more + Math.floor((slot - withMore) / each);
}

/** How many slots a coordinate has. */
export function slotsOf({ count, owners }: Deal, owner: number): number {
  return Math.floor(count / owners) + (owner < count % owners ? 1 : 0);
}

/** The first slot of a coordinate, if each has a run of them. */
export function firstSlot({ count, owners }: Deal, owner: number): number {
  return owner * Math.floor(count / owners) + Math.min(owner, count % owners);
}

/** Says where a slot stands among those of its coordinate. */
export function localSlot(deal: Deal, slot: number): number {
  return deal.roundRobin ? Math.floor(slot / deal.owners) : slot - firstSlot(deal, ownerOf(deal, slot));
}
