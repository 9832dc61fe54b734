/**
 * What a transport's folder says of itself to programs that choose transports by name, as the command line does: `offer.ts`, whose
 * `offer` makes it, and whose `library`, if it loads one, says to doctor what there is of that.
 */
import { TensorBusError } from "../errors.ts";
import type { ConnectedTransport } from "./connected-session.ts";
import type { ListenOptions } from "./meeting.ts";

export interface OfferRequest {
  /** Someone wants this very transport, so what keeps it from working is an error; else one of several, if it can be of use. */
  readonly named: boolean;
  /** How ranks meet, whichever transport they meet by. */
  readonly meeting: ListenOptions & { readonly connections?: number };
  /** The UUID of the GPU that this rank's tensors may lie on. */
  readonly device: string | undefined;
}

/** Undefined: it is of no use on this machine, or to a rank without a GPU. */
export type Offer = (request: OfferRequest) => ConnectedTransport | undefined;

/** A library that a transport loads when it is used. */
export interface OptionalLibrary {
  readonly name: string;
  /** How to get it. */
  readonly advice: string;
  /** The version that was found, and more; a `TensorBusError` says what is missing. */
  find(search: LibrarySearch): Promise<string>;
}

export interface LibrarySearch {
  readonly environment: NodeJS.ProcessEnv;
  /** The path of a library that the linker, or Python's packages, have; undefined if neither has it. */
  readonly pathOf: (soname: string) => Promise<string | undefined>;
}

/** The device, or `TB_UNSUPPORTED` if the transport was named; undefined if it was not. */
export function deviceFor(
  transport: string,
  { named, device }: Pick<OfferRequest, "named" | "device">,
): string | undefined {
  if (device !== undefined || !named) return device;
  throw new TensorBusError(
    "TB_UNSUPPORTED",
    `the transport ${transport} needs a GPU: \`agent --device UUID\``,
  );
}
