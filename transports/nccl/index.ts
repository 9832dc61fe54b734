import { setTimeout as sleep } from "node:timers/promises";
import { cancelledError, type Deadline } from "../../src/deadline.ts";
import { TensorBusError } from "../../src/errors.ts";
import { parseUuid } from "../../src/ffi/cuda.ts";
import * as ffi from "../../src/ffi/nccl.ts";
import { attachTransfer, checkTransferPeers, isAttached } from "../../src/ffi/session.ts";
import {
  type ConnectedTransport,
  connectedTransport,
  type GatherContext,
} from "../../src/transport/connected-session.ts";
import { type ListenOptions, meetAt } from "../../src/transport/meeting.ts";
import type { Gather } from "../../src/transport/native-session.ts";
import type { TransportCapabilities } from "../../src/transport/transport.ts";
import { Communicators } from "./communicators.ts";
import { Gathering } from "./gathering.ts";

export interface NcclTransportOptions extends ListenOptions {
  /** The GPU of this rank, as `nvidia-smi -L` names it: `GPU-…`. */
  readonly device: string;
  /** The port to listen on for control connections; default 0, a free one. */
  readonly port?: number;
  /** The library; default: see `findNccl`. */
  readonly library?: string;
  /**
   * Lets two ranks stand on one GPU: an experiment of NCCL 2.30 and later, which wants `NCCL_MULTI_RANK_GPU_ENABLE=1` as
   * well. Otherwise that is `TB_DEVICE_SHARED`. Default false.
   */
  readonly sharedDevices?: boolean;
}

const capabilities: TransportCapabilities = {
  memory: ["cuda"],
  crossHost: true,
  checksum: false,
};

/** The first version in which two ranks can stand on one GPU. */
const sharedDeviceVersion = 23_000;

/**
 * Moves tensors between GPUs of one or many hosts by NCCL. One rank is one GPU; plans, grants and failures travel over
 * authenticated TCP connections, tensors do not. See this folder's README for NCCL's own environment.
 */
export function nccl(options: NcclTransportOptions): ConnectedTransport {
  const { device, sharedDevices = false } = options;
  return connectedTransport({
    name: "nccl",
    capabilities,
    carrier: "nccl",
    device,
    ...(sharedDevices ? { also: ["shared-gpu"] } : {}),
    meet: meetAt(options),
    gather(context) {
      const library = options.library ?? ffi.findNccl();
      checkVersion(library, sharedDevices);
      ffi.useNccl(context.session, library);
      return gatherBy(context, { device: parseUuid(device), library, sharedDevices });
    },
  });
}

interface Library {
  readonly device: Uint8Array;
  readonly library: string;
  readonly sharedDevices: boolean;
}

function gatherBy(
  { session, scope, directory, open: { store, rank } }: GatherContext,
  { device, library, sharedDevices }: Library,
): Gather {
  const gathering = new Gathering({ rank, directory });
  const communicators = new Communicators({
    store,
    scope,
    rank,
    device,
    sharedDevices,
    calls: {
      uniqueId: () => ffi.ncclUniqueId(library),
      join: (setup) => ffi.joinCommunicator(session, setup),
      isJoined: (communicator) => ffi.isJoined(session, communicator),
      leave: (communicator) => ffi.leaveCommunicator(session, communicator),
    },
  });
  return {
    choose: (links, checksum, deadline) => gathering.choose(links, checksum, deadline),
    check: (ranks, deadline) => gathering.check(ranks, deadline),
    announce: (joining, deadline) => communicators.announce(joining, deadline),
    async attach(transfer, joining, ticket, deadline) {
      const check = () => checkTransferPeers(session, transfer);
      attachTransfer(session, transfer, await communicators.of(joining, ticket, deadline, check));
      await attached(session, transfer, deadline);
      check();
    },
    withdraw: () => communicators.withdraw(),
  };
}

/** What is being taken of the device has to be there, or to have failed, before anything can be given back. */
async function attached(session: bigint, transfer: bigint, { signal }: Deadline): Promise<void> {
  while (!isAttached(session, transfer)) await sleep(1);
  if (signal?.aborted) throw cancelledError("preparing", signal);
}

function checkVersion(library: string, sharedDevices: boolean): void {
  const { number, text } = ffi.ncclVersion(library);
  if (!sharedDevices) return;
  if (number < sharedDeviceVersion || process.env["NCCL_MULTI_RANK_GPU_ENABLE"] !== "1") {
    throw new TensorBusError(
      "TB_LIBRARY",
      `sharedDevices needs NCCL 2.30 and NCCL_MULTI_RANK_GPU_ENABLE=1; this is ${text}`,
      { details: { found: number, expected: sharedDeviceVersion } },
    );
  }
}
