// What a run of chaos is asked.
import { parseArgs } from "node:util";

export const usage = `npm run chaos -- [--faults N] [--seed S] [--seconds T] [--only NAME] [--transports A,B] [--json FILE [--add]]

Throws faults into clusters of real processes, with what \`npm run build\` made. test/chaos/README.md says which, and what is judged.`;

export function optionsOf(argv) {
  return parseArgs({
    args: argv,
    options: {
      faults: { type: "string", default: "100" },
      seed: { type: "string", default: "1" },
      seconds: { type: "string", default: "86400" },
      only: { type: "string", default: "" },
      transports: { type: "string", default: "tcp,shm" },
      json: { type: "string" },
      add: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  }).values;
}
