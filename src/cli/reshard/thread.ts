import { Command } from "commander";
import { runHand } from "../../checkpoint/threads.ts";

/** One thread of `reshard`; only `reshard` starts it, and it loads nothing but what moves bytes. */
export function reshardThreadCommand(): Command {
  return new Command("reshard-thread").action(runHand);
}
