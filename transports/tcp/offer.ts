/** The transport as the command line offers it. */
import type { Offer } from "../../src/transport/offer.ts";
import { tcp } from "./index.ts";

export const offer: Offer = ({ meeting }) => tcp(meeting);
