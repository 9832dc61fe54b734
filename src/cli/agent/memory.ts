import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/**
 * Says whether V8's space for new objects may grow. Loading an agent's code would take it to 16 MiB, which it keeps and an
 * agent that waits does not need; one that is busy does better with it.
 */
export function letNewSpaceGrow(may: boolean): void {
  setFlagsFromString(`--semi-space-growth-factor=${may ? 2 : 1}`);
}

/**
 * What it took to load and start is given back to the system at once: an agent that waits would not collect it for hours. Code
 * that ran is compiled again when it is called again, and the holes between what stays are closed. It takes tens of milliseconds.
 */
export function giveBackWhatStartTook(): void {
  const during = ["expose-gc", "compact-on-every-full-gc", "stress-flush-code"];
  for (const flag of during) setFlagsFromString(`--${flag}`);
  const collect = runInNewContext("gc") as () => void;
  collect();
  // What the first one lets go of makes more that is of no use.
  collect();
  for (const flag of during) setFlagsFromString(`--no-${flag}`);
}
