/** The transports that the command line composes: what each folder of `transports/` offers. */
import type { Offer, OfferRequest, OptionalLibrary } from "../transport/offer.ts";
import { select } from "../transport/selection.ts";
import type { Transport } from "../transport/transport.ts";
import { type TransportFolder, type TransportName, transportFolders } from "./ui/transport-option.ts";

/**
 * The best for each pair of ranks, or the one of that name for all. `meeting` says how ranks meet, whichever it is, and
 * `device` on which GPU this rank's tensors may lie.
 */
export async function chooseTransport(
  name: TransportName,
  meeting: OfferRequest["meeting"] = {},
  device?: string,
): Promise<Transport> {
  // Ranks meet as the first does that crosses hosts: by tcp.
  const asked = name === "auto" ? transportFolders : [...new Set(["tcp" as const, name])];
  const offers = await Promise.all(
    asked.map(async (folder) => {
      const { offer } = await load(folder);
      return offer({ named: folder === name, meeting, device });
    }),
  );
  const found = offers.filter((one) => one !== undefined);
  return select(found, name === "auto" ? {} : { force: name });
}

/** The libraries that transports load when they are used. */
export async function optionalLibraries(): Promise<readonly OptionalLibrary[]> {
  const loaded = await Promise.all(transportFolders.map(load));
  return loaded.flatMap(({ library }) => library ?? []);
}

/** Bundlers put the `offer.ts` of every folder there, so that none has to be named here. */
async function load(
  folder: TransportFolder,
): Promise<{ readonly offer: Offer; readonly library?: OptionalLibrary }> {
  return await import(`../../transports/${folder}/offer.ts`);
}
