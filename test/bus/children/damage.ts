/**
 * Opens, reads and writes a folder of the bus again and again, each time with other damage to its files, drawn by a seed:
 * what LMDB would be ended by must end as an error. Tells each case before it tries it.
 */
import { appendFileSync, cpSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { openEventPort } from "../../../src/bus/process/event-port.ts";
import { type Environment, keyOf, openEnvironment, rangeOf } from "../../../src/bus/queue/environment.ts";
import { TensorBusError } from "../../../src/errors.ts";

/** `before` they are opened, `live`: while they are in use, between two transactions, or `within` one. */
export type DamageTime = "before" | "live" | "within";

const { path, cases, when } = JSON.parse(process.argv[2]!) as {
  path: string;
  cases: number;
  when: DamageTime;
};
const port = openEventPort();
const whole = `${path}-whole`;
const codes: Record<string, number> = {};

let state = 20_261;
function below(limit: number): number {
  state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
  return Math.floor((state / 2 ** 32) * limit);
}

const stepsOfWrite = 80;

const open = () => openEnvironment({ path, kind: "queue", port });

/** `harm` comes before that step of the write, if there is such a one. */
function useAll(environment: Environment, harmAt = -1, harm = () => {}): Promise<void> {
  const sizes: number[] = [];
  environment.read(() => {
    for (const { value } of environment.root.getRange(rangeOf(1))) sizes.push(value.length);
    for (const { value } of environment.root.getRange(rangeOf(2))) sizes.push(value.length);
  });
  return environment.write("a write", () => {
    for (let step = 0; step < stepsOfWrite; step++) {
      if (step === harmAt) harm();
      if (step < stepsOfWrite / 2) environment.root.remove(keyOf(1, BigInt(below(600))));
      else environment.root.put(keyOf(2, BigInt(step)), Buffer.alloc(below(9000), step));
    }
  });
}

async function fill(): Promise<void> {
  const environment = await open();
  for (let round = 0; round < 6; round++) {
    await environment.write("a write", () => {
      for (let i = 0; i < 100; i++) {
        const size = i % 50 === 0 ? 20_000 : 300;
        environment.root.put(keyOf(1, BigInt(100 * round + i)), Buffer.alloc(size, i));
      }
      if (round > 2) for (let i = 0; i < 50; i++) environment.root.remove(keyOf(1, BigInt(i * 3)));
    });
  }
  await environment.close();
}

function overwrite(file: string, bytes: Buffer): string {
  const page = below(4) === 0 ? below(2) : below(bytes.length / 4096);
  // Most of what a page says of itself stands at its beginning.
  const at = Math.min(page * 4096 + (below(3) === 0 ? below(4096) : below(200)), bytes.length - 8);
  const value = [0, 0xff, below(256)][below(3)]!;
  const length = 1 + below(8);
  bytes.fill(value, at, at + length);
  writeFileSync(file, bytes);
  return `${length} bytes at ${at} are ${value}`;
}

/** How the file was damaged. */
function damage(file: string): string {
  const bytes = readFileSync(file);
  const kind = below(8);
  if (kind === 0) {
    const length = below(bytes.length);
    truncateSync(file, length);
    return `cut to ${length}`;
  }
  if (kind === 1) {
    const page = below(bytes.length / 4096);
    for (let i = 0; i < 4096; i++) bytes[page * 4096 + i] = below(256);
    writeFileSync(file, bytes);
    return `page ${page} is noise`;
  }
  if (kind === 2) {
    const [from, to] = [below(bytes.length / 4096), below(bytes.length / 4096)];
    bytes.copyWithin(to * 4096, from * 4096, (from + 1) * 4096);
    writeFileSync(file, bytes);
    return `page ${to} is a copy of ${from}`;
  }
  return overwrite(file, bytes);
}

/** Of a file that is in use: its length and what is looked at before each transaction. */
function damageLive(file: string): string {
  const bytes = readFileSync(file);
  if (below(2) === 0) {
    const length = below(bytes.length);
    truncateSync(file, length);
    return `cut to ${length}`;
  }
  const page = file.endsWith("data.mdb") ? below(2) * 4096 + 24 : 0;
  bytes.fill(below(256), page, page + 8);
  writeFileSync(file, bytes);
  return `8 bytes at ${page} are ${bytes[page]}`;
}

/** To a length that is no number of pages: what is left of the last page is followed by zeros. */
function cutWithinPage(file: string): string {
  const pages = Math.floor(readFileSync(file).length / 4096);
  const length = 4096 * below(pages) + 1 + below(4095);
  truncateSync(file, length);
  return `cut to ${length} within a transaction`;
}

async function attempt(harm: () => void): Promise<string> {
  let environment: Environment | undefined;
  try {
    if (when === "before") harm();
    environment = await open();
    if (when === "live") harm();
    if (when === "within") await useAll(environment, below(stepsOfWrite), harm);
    await useAll(environment);
    await useAll(environment);
    return "none";
  } catch (error) {
    if (error instanceof TensorBusError) return error.code;
    throw error;
  } finally {
    await environment?.close();
  }
}

rmSync(path, { recursive: true, force: true });
await fill();
cpSync(path, whole, { recursive: true });
for (let i = 0; i < cases; i++) {
  rmSync(path, { recursive: true });
  cpSync(whole, path, { recursive: true });
  const file = when !== "within" && below(10) === 0 ? "lock.mdb" : "data.mdb";
  const code = await attempt(() => {
    const what = { before: damage, live: damageLive, within: cutWithinPage }[when](join(path, file));
    appendFileSync(`${path}.log`, `case ${i}: ${file}, ${what}\n`);
  });
  appendFileSync(`${path}.log`, `  ${code}\n`);
  codes[code] = (codes[code] ?? 0) + 1;
}
process.send?.(codes);
await port.close();
