/** What can carry buckets between two sessions, and between which of them. "sessions" of `native/include/tensorbus.h`. */
import { declareNative } from "./native.ts";

const native = declareNative({
  tb_session_identity: ["u64", "pointer"],
  tb_identity_read: ["pointer", "out u32", "pointer"],
  tb_carrier_between: ["pointer", "pointer", "u32", "u32", "out u32"],
  tb_transfer_carrier: ["u64", "u64", "i32", "out u32"],
});

/**
 * A line registers a carrier, by its bit in `native/src/carriers/registry.h`, and with it the transport of its folder in `transports/`,
 * which the command line offers and doctor looks at from then on.
 */
const carrierBits = {
  stream: 1,
  shm: 2,
  "cuda-ipc": 4,
  nccl: 8,
  ucx: 32,
} as const;
/** In the tests' own library alone: `native/test/carriers/file`. */
const testBits = { file: 16 } as const;
/**
 * `tb_carrier_flags`: how carriers are used. `shared-gpu`: NCCL may be asked to stand on one GPU with another rank that says so,
 * too. `apart` is for tests: memory of this process is then reached as if it were another's.
 */
const flagBits = { "shared-gpu": 0x4000_0000, apart: 0x8000_0000 } as const;
const bits = { ...carrierBits, ...testBits, ...flagBits };
export type Carrier = keyof typeof bits;
/** Those that ship. */
export type ShippedCarrier = keyof typeof carrierBits;
export const shippedCarriers = Object.keys(carrierBits) as readonly ShippedCarrier[];
const memoryBits = { host: 1, shared: 2, cuda: 4 } as const;
const memberRoles = { joins: 1, peer: 2, linked: 4, apart: 8 } as const;
export const transferFlags = { checksum: 1 } as const;
/** `TB_IDENTITY_BYTES`. */
export const identityBytes = 96;
const gpuBytes = 32;

/** What a rank is to a transfer beyond what its program exchanges with it. */
export interface Member {
  readonly rank: number;
  /** It is of the communicator of a transfer some of whose buckets go by NCCL. */
  readonly joins: boolean;
  /** What it and this rank exchange goes by NCCL. */
  readonly peer: boolean;
  /** Neither of the two completes a round that the other has not begun. */
  readonly linked?: boolean;
  /** It is linked alone: it begins no round together with those who join. */
  readonly apart?: boolean;
}

/** The identity of a session for carriers; it holds no secret. */
export function sessionIdentity(session: bigint): Uint8Array {
  const identity = new Uint8Array(identityBytes);
  native.tb_session_identity(session, identity);
  return identity;
}

/** What an identity says: whether a carrier is used there, and which GPU of which host it is. */
export function readIdentity(identity: Uint8Array): {
  readonly uses: (carrier: Carrier) => boolean;
  readonly gpu: string;
} {
  const gpu = new Uint8Array(gpuBytes);
  const carriers = native.tb_identity_read(identity, gpu);
  return {
    uses: (carrier) => Math.floor(carriers / bits[carrier]) % 2 === 1,
    gpu: Buffer.from(gpu).toString("hex"),
  };
}

/**
 * What would carry the buckets of two sessions between tensors in that kind of memory. `TB_UNSUPPORTED` if nothing
 * would, and says what is missing; `TB_DEVICE_SHARED` if NCCL misses only a GPU for each rank.
 */
export function carrierBetween(
  one: Uint8Array,
  other: Uint8Array,
  { memory, checksum }: { readonly memory: keyof typeof memoryBits; readonly checksum: boolean },
): Carrier {
  const flags = checksum ? transferFlags.checksum : 0;
  return carrierOf(native.tb_carrier_between(one, other, memoryBits[memory], flags));
}

/** What carries the buckets between this rank and a peer of a transfer that is prepared. */
export function transferCarrier(session: bigint, transfer: bigint, rank: number): Carrier {
  return carrierOf(native.tb_transfer_carrier(session, transfer, rank));
}

export function carrierMask(carriers: readonly Carrier[]): number {
  return carriers.reduce((mask, carrier) => mask + bits[carrier], 0);
}

export function encodeMembers(members: readonly Member[]): Int32Array {
  return Int32Array.from(
    members.flatMap(({ rank, joins, peer, linked = false, apart = false }) => [
      rank,
      (joins ? memberRoles.joins : 0) +
        (peer ? memberRoles.peer : 0) +
        (linked ? memberRoles.linked : 0) +
        (apart ? memberRoles.apart : 0),
    ]),
  );
}

function carrierOf(number: number): Carrier {
  const found = Object.entries(bits).find(([, bit]) => bit === 2 ** number);
  if (found === undefined)
    throw new TypeError(`the native library named a carrier of the unknown number ${number}`);
  return found[0] as Carrier;
}
