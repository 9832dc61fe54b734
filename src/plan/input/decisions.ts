import type { NormalInput } from "./normalize.ts";
import { type Routing, route } from "./routing.ts";

/**
 * Grows with every change of what the planner answers to the same input. From version 3 on stages overlap: the costs of
 * `auto` say so, and tensors whose stripes are handed on come before all others in every channel. An input to which 2
 * gives the same answers is planned as 2, so that its digest stays.
 */
export const plannerVersion = 3;
export const oldestPlanner = 2;

/** What is decided of an input before there is any chunk. */
export interface Decisions {
  readonly planner: number;
  /** For each pattern. */
  readonly routing: readonly Routing[];
  /** The tensors in the order in which their chunks fill channels; `undefined` for the input's own. */
  readonly order: Uint32Array | undefined;
}

/** Decides as the planner of that version does; the newest unless told. */
export function decide(input: NormalInput, planner = plannerVersion): Decisions {
  const routing = input.patterns.map((pattern) => route(input, pattern, "overlapping"));
  const order = handedOnFirst(input, routing);
  // Only what costs decided can have been decided otherwise.
  const before = input.patterns.map((pattern, index) =>
    routing[index]!.costs === undefined ? routing[index]! : route(input, pattern, "in turn"),
  );
  const isAsBefore = order === undefined && routing.every((one, index) => isSame(one, before[index]!));
  if (isAsBefore) return { planner: oldestPlanner, routing, order };
  return planner === oldestPlanner
    ? { planner, routing: before, order: undefined }
    : { planner: plannerVersion, routing, order };
}

function isSame(one: Routing, other: Routing): boolean {
  return one.strategy === other.strategy && one.groups === other.groups && one.reason === other.reason;
}

/**
 * Tensors whose stripes replicas hand on, then the others, each in their own order: what others wait for travels before
 * what nobody waits for.
 */
function handedOnFirst(
  { kinds, tensorKinds }: NormalInput,
  routing: readonly Routing[],
): Uint32Array | undefined {
  if (routing.every(({ groups }) => groups === "none")) return undefined;
  const isHandedOn = Uint8Array.from(tensorKinds, (kind) =>
    routing[kinds[kind]!.pattern]!.groups === "none" ? 0 : 1,
  );
  const handed = isHandedOn.reduce((sum, one) => sum + one, 0);
  if (isHandedOn.subarray(0, handed).every((one) => one === 1)) return undefined;
  const order = new Uint32Array(tensorKinds.length);
  const next = [handed, 0];
  isHandedOn.forEach((one, tensor) => {
    order[next[one]!++] = tensor;
  });
  return order;
}
