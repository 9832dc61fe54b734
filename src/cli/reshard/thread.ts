import { Command } from "commander";

/** One thread of `reshard`; only `reshard` starts it, and it loads nothing but what moves bytes. */
export function reshardThreadCommand(): Command {
  return new Command("reshard-thread").action(async () =>
    (await import("../../checkpoint/threads.ts")).runHand(),
  );
}
