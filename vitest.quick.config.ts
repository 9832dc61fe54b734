import full from "./vitest.config.ts";

/** The unit tests: no servers, no browser, nothing that takes many seconds. `npm test` runs all. */
const include = [
  "test/{architecture,english,errors,pages}*.test.ts",
  "test/layout/**/*.test.ts",
  "test/exec/**/*.test.ts",
  "test/model/**/*.test.ts",
  "test/plan/{digests,diff,explain,planner-balance,planner-codec,planner-errors,planner-input}.test.ts",
  "test/store/{replay,signed}.test.ts",
  "test/memory/kernels.test.ts",
  "test/transport/{memory,peer-directory,secret,selection}.test.ts",
  "test/bus/{agent-layouts,agent-transfer,commands,global-shape,names,semaphore,shared-tensor,state}.test.ts",
  "test/cli/{budgets,diff,markdown,ui}.test.ts",
];

/** Whole models, compared with what engines and trainers hold: seconds each. */
const exclude = ["test/model/{hostile,parts-round-trip,vllm-derived,vllm-layouts}.test.ts"];

export default { ...full, test: { ...full.test, include, exclude } };
