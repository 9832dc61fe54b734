/**
 * The power fails between any two calls: no state that the disk may be left in looks like a result and is none, and the same command
 * gives the bytes of a run that was not disturbed. Every call that makes something durable is needed: without it, one does.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { journalName } from "../../src/checkpoint/journal.ts";
import { type MoveOptions, moveCheckpoint } from "../../src/checkpoint/mover.ts";
import { isOfResult, manifestName } from "../../src/checkpoint/names.ts";
import { ResultFolder } from "../../src/checkpoint/result.ts";
import { type CheckpointSource, safetensorsSource } from "../../src/checkpoint/source.ts";
import { rankFiles, type TargetFile } from "../../src/checkpoint/target.ts";
import { DeviceMesh, parsePlacement } from "../../src/layout/index.ts";
import { type TensorSpec, writeCheckpoint } from "./kit/folders.ts";
import { type State, type Step, statesOf } from "./kit/recorded-disk.ts";

const { disk } = await vi.hoisted(async () => {
  const { RecordedDisk: Disk } = await import("./kit/recorded-disk.ts");
  return { disk: new Disk() };
});
vi.mock("node:fs", async (original) => disk.fs(await original()));
vi.mock("node:fs/promises", async (original) =>
  disk.promises(await original(), await vi.importActual("node:fs")),
);
const actual = await vi.importActual<typeof import("node:fs")>("node:fs");

const tensors: readonly TensorSpec[] = Array.from({ length: 2 }, (_, at) => ({
  name: `t.${at}`,
  shape: [2, 4],
  dtype: "int16",
}));

let folder: string;
let source: CheckpointSource;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "tensorbus-power-"));
  await writeCheckpoint(join(folder, "model.safetensors"), tensors);
  source = await safetensorsSource(join(folder, "model.safetensors"));
});
afterAll(() => rmSync(folder, { recursive: true }));

interface Target {
  readonly files: readonly TargetFile[];
  readonly beside: ReadonlyMap<string, string>;
}

/** Two files, in one of two ways. */
function targetOf(placement: "S(0)" | "S(1)"): Target {
  const layout = { mesh: new DeviceMesh([2]), placements: [parsePlacement(placement)] };
  const input = {
    pairs: { all: { source: layout, target: layout } },
    tensors: tensors.map(({ name, shape, dtype }) => ({ name, pair: "all", shape, dtype })),
  };
  const beside = new Map([["config.json", JSON.stringify({ placement })]]);
  return { files: rankFiles(input, {}, placement), beside };
}

/** As the command does it; it compares nothing, so that nothing but what is durable keeps it from giving what is wrong. */
async function run(
  into: string,
  { files, beside }: Target,
  force: boolean,
  onPublish?: () => void,
): Promise<void> {
  const result = await ResultFolder.open(into, force);
  await moveCheckpoint({
    source,
    files,
    folder: into,
    verify: false,
    onPublish: onPublish ?? (() => result.invalidate()),
    onPublished: ({ files: written }) => {
      const list = written.map(({ name, bytes }) => ({ name, bytes }));
      return result.complete({ plan: "p", checkpoint: "c", target: "t", files: list }, files, beside);
    },
  } satisfies MoveOptions);
}

function stateOf(path: string): State {
  return new Map(readdirSync(path).map((name) => [name, readFileSync(join(path, name))]));
}

const isHidden = (name: string) => name.endsWith(".partial");

/** Says why a state is taken for a result and is none; `undefined` if all is well. */
function lie(state: State, results: readonly State[]): string | undefined {
  const names = [...state.keys()].filter((name) => isOfResult(name));
  const isOf = (result: State) =>
    names.every((name) => name === manifestName || result.get(name)?.equals(state.get(name)!) === true);
  if (!results.some(isOf)) return `${names.join(", ")} are not of one result`;
  const manifest = state.get(manifestName);
  if (manifest === undefined) return undefined;
  const result = results.find((each) => each.get(manifestName)!.equals(manifest));
  if (result === undefined) return "the manifest is not whole";
  const missing = [...result.keys()].find((name) => state.get(name)?.equals(result.get(name)!) !== true);
  return missing === undefined ? undefined : `a manifest stands, and ${missing} is not what it was`;
}

/** Runs the same command again on a state; says what is wrong with what it gives. */
async function again(
  state: State,
  target: Target,
  force: boolean,
  result: State,
): Promise<string | undefined> {
  const into = mkdtempSync(join(folder, "again-"));
  try {
    for (const [name, bytes] of state) writeFileSync(join(into, name), bytes);
    // What is complete is not made again; and an earlier result that is not touched yet, or half removed, is replaced by --force.
    if (state.get(manifestName)?.equals(result.get(manifestName)!) === true) return undefined;
    await run(into, target, force);
    const found = stateOf(into);
    const odd = [...result.keys()].find((name) => found.get(name)?.equals(result.get(name)!) !== true);
    if (odd !== undefined) return `after a second run ${odd} is not what it should be`;
    const more = [...found.keys()].find((name) => !result.has(name) && !isHidden(name));
    return more === undefined ? undefined : `after a second run there is ${more}`;
  } catch (error) {
    return `a second run: ${String(error)}`;
  } finally {
    rmSync(into, { recursive: true });
  }
}

interface Recording {
  readonly before: readonly Step[];
  readonly steps: readonly Step[];
  readonly target: Target;
  readonly force: boolean;
  readonly results: readonly State[];
}

/** Records a run into a folder as `prepare` leaves it. */
async function record(
  target: Target,
  force: boolean,
  prepare: (into: string) => Promise<readonly State[]>,
): Promise<Recording> {
  const into = mkdtempSync(join(folder, "recorded-"));
  const earlier = await prepare(into);
  disk.begin(into, actual);
  await run(into, target, force);
  return { ...disk.end(), target, force, results: [...earlier, stateOf(into)] };
}

/** The first thing that is wrong with any state that these steps may leave. */
async function firstFault({ before, steps, target, force, results }: Recording) {
  for (const state of statesOf(before, steps)) {
    const what = lie(state, results) ?? (await again(state, target, force, results.at(-1)!));
    if (what !== undefined) return { what, names: [...state.keys()] };
  }
  return undefined;
}

const stop = () => {
  throw new Error("killed");
};

describe("a run", () => {
  const cases: readonly [string, () => Promise<Recording>][] = [
    ["into an empty folder", () => record(targetOf("S(0)"), false, async () => [])],
    [
      "in place of an earlier result",
      () =>
        record(targetOf("S(0)"), true, async (into) => {
          await run(into, targetOf("S(1)"), false);
          return [stateOf(into)];
        }),
    ],
    [
      "where a file is missing of one that was killed",
      () =>
        record(targetOf("S(0)"), false, async (into) => {
          await expect(run(into, targetOf("S(0)"), false, stop)).rejects.toThrow("killed");
          rmSync(join(into, "rank-1.safetensors.partial"));
          return [];
        }),
    ],
  ];
  const recordings: Recording[] = [];

  it.each(cases)("%s is whole or none, and is made by the same command", async (_, make) => {
    const recording = await make();
    recordings.push(recording);
    expect(await firstFault(recording)).toBeUndefined();
    expect([...recording.results.at(-1)!.keys()]).not.toContain(journalName);
  });

  /** What is done is noted durably so that it is not done again: without it more is, and nothing is wrong. */
  const ofProgress = / of Journal\.#?append /;

  it("needs every call that makes something durable", async () => {
    const sites = new Map<string, boolean>();
    for (const recording of recordings) {
      const { before, steps } = recording;
      for (const [index, step] of steps.entries()) {
        if (step.kind !== "sync" && step.kind !== "sync folder") continue;
        if (sites.get(step.site) === true || ofProgress.test(step.site)) continue;
        // Up to there all is as it was.
        const done = [...before, ...steps.slice(0, index)];
        const fault = await firstFault({ ...recording, before: done, steps: steps.slice(index + 1) });
        sites.set(step.site, fault !== undefined);
      }
    }
    expect([...sites].filter(([, isNeeded]) => !isNeeded).map(([site]) => site)).toEqual([]);
    expect(sites.size).toBeGreaterThan(8);
  });
});
