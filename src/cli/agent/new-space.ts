import { setFlagsFromString } from "node:v8";

/**
 * Says whether V8's space for new objects may grow. Loading an agent's code would take it to 16 MiB, which it keeps and an
 * agent that waits does not need; one that is busy does better with it.
 */
export function letNewSpaceGrow(may: boolean): void {
  setFlagsFromString(`--semi-space-growth-factor=${may ? 2 : 1}`);
}
