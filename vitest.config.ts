import { defineConfig } from "vitest/config";

/** The unit tests: no servers, no browser, nothing that takes many seconds. */
const unit = [
  "test/{architecture,architecture-native,english,errors,folders,pages}.test.ts",
  "test/layout/**/*.test.ts",
  "test/exec/**/*.test.ts",
  // Whole models, compared with what engines and trainers hold, take seconds each.
  "test/model/**/!(hostile|parts-round-trip|vllm-derived|vllm-layouts).test.ts",
  "test/plan/{digests,diff,explain,planner-balance,planner-codec,planner-errors,planner-input}.test.ts",
  "test/store/{replay,signed}.test.ts",
  "test/memory/kernels.test.ts",
  "test/transport/{peer-directory,secret,selection}.test.ts",
  "test/bus/{agent-layouts,agent-transfer,commands,global-shape,names,semaphore,shared-tensor,state}.test.ts",
  "test/cli/{budgets,diff,markdown,ui}.test.ts",
];

/** Tests that take longer, and leave nothing behind in their process either: no library of another kind, no variable, no mock. */
const several = [
  "test/bus/{agent-failures,agent-planning,agent-presence,agent-process,agent-registration,agent-rounds}.test.ts",
  "test/bus/{agent-trust,agent-watch,batch-records,client-bootstrap,client-hostile,client-restart}.test.ts",
  "test/bus/{command-queue,cut-files,damage,environment,folder-trust,full-disk,namespaces}.test.ts",
  "test/bus/{plain-values,removal,uplink}.test.ts",
  "test/checkpoint/{cut,dcp,faults,foreign-folders,mover,notes}.test.ts",
  "test/cli/{command-line,doctor,explain,plan,plan-presets,reshard-request,saved-plan}.test.ts",
  "test/cli/report/report-parts.test.ts",
  "test/model/parts-round-trip.test.ts",
  "test/plan/{opaque-types,schedule,steps,verify-steps}.test.ts",
  "test/store/{open-store,tcp}.test.ts",
  "test/transport/{communicators,leaving,tcp}.test.ts",
];

/** What this configuration and that of the package's tests have in common. */
export const shared = {
  pool: "forks",
  setupFiles: "test/kit/hooks.ts",
  // What never comes is to fail, not what comes late: a machine that others use may take ten times as long.
  testTimeout: 120_000,
  hookTimeout: 120_000,
  expect: { poll: { timeout: 30_000 } },
} as const;

export default defineConfig({
  test: {
    globalSetup: ["test/global-setup.ts"],
    // One more than the two cores that most have for it: many tests wait for processes.
    maxWorkers: 3,
    projects: [
      // They leave nothing behind in their process, so one process may run many files: it loads the sources once.
      { test: { ...shared, name: "unit", include: unit, isolate: false } },
      { test: { ...shared, name: "several", include: several, isolate: false } },
      {
        test: {
          ...shared,
          name: "system",
          include: ["test/**/*.test.ts"],
          // test/package installs what is published: `npm run test:package`.
          exclude: [...unit, ...several, "test/package/**"],
        },
      },
    ],
  },
});
