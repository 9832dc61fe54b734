#!/usr/bin/env node
/**
 * npm run fuzz -- TARGET [--seconds N] [--seed S]: tries inputs that nobody wrote on a reader of other people's bytes. Each
 * run of the tests does so for a moment. Targets in C run with AddressSanitizer and UndefinedBehaviorSanitizer.
 */
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { parseArgs } from "node:util";

const root = join(import.meta.dirname, "..");
/** The program in native/test that takes seconds and a seed. */
const native = {
  engine: "engine_fuzz_test",
  handshake: "handshake_fuzz_test",
  program: "program_fuzz_test",
  import: "import_test",
};
const inTypeScript = [
  ...["messages", "plan", "safetensors", "spec", "config", "visible"],
  ...["store-server", "store-client", "etcd", "lmdb", "dcp", "layout"],
];

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    seconds: { type: "string", default: "60" },
    seed: { type: "string", default: String(Date.now() % 1e6) },
  },
});
const [target = ""] = positionals;
const { seconds, seed } = values;

/** @param {string} command @param {string[]} args @param {Record<string, string>} [env] */
function run(command, args, env) {
  const { status } = spawnSync(command, args, {
    cwd: root,
    stdio: "inherit",
    env: { ...process.env, ...env },
  });
  if (status !== 0) process.exit(status ?? 1);
}

if (target in native) {
  const program = `build/check/${native[/** @type {keyof typeof native} */ (target)]}`;
  run("make", ["--silent", "-C", "native", program]);
  console.log(`${target} for ${seconds} s, seed ${seed}`);
  run(join(root, "native", program), [seconds, seed]);
} else if (inTypeScript.includes(target)) {
  console.log(`${target} for ${seconds} s, seed ${seed}`);
  run(process.execPath, [join(root, "node_modules/vitest/vitest.mjs"), "run", "test/fuzz/long.test.ts"], {
    TENSORBUS_FUZZ: `${target},${seconds},${seed}`,
  });
} else {
  console.error(
    `npm run fuzz -- TARGET [--seconds N] [--seed S]; targets: ${[...Object.keys(native), ...inTypeScript].join(" ")}`,
  );
  process.exit(2);
}
