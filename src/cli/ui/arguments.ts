import { InvalidArgumentError } from "commander";
import { maxRanks } from "../../layout/index.ts";

/** A rank on the command line. */
export function parseRank(text: string): number {
  const rank = Number(text);
  if (/^\d+$/.test(text) && rank < maxRanks) return rank;
  throw new InvalidArgumentError(`A rank must be a number from 0 to ${maxRanks - 1}.`);
}
