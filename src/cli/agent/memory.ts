import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/** Time in which clients come and register. It is soon for an agent that waits, and late for what lives only for moments. */
const afterMs = 10_000;

interface Worker {
  readonly commandsUnderWay: number;
}

/**
 * What it took to load and start is given back to the system once: an agent that waits would not collect it for hours. Code
 * that ran is compiled again when it is called again, and the holes between what stays are closed. It takes tens of
 * milliseconds, a fifth of a start, for which no command waits: it is put off while one is under way.
 */
export function giveBackWhatStartTook(agents: readonly Worker[]): void {
  setTimeout(() => {
    if (agents.some(({ commandsUnderWay }) => commandsUnderWay > 0)) return giveBackWhatStartTook(agents);
    const during = ["expose-gc", "compact-on-every-full-gc", "stress-flush-code"];
    for (const flag of during) setFlagsFromString(`--${flag}`);
    const collect = runInNewContext("gc") as () => void;
    collect();
    for (const flag of during) setFlagsFromString(`--no-${flag}`);
  }, afterMs).unref();
}
