import type { Plan } from "../../plan/index.ts";
import { entryScript, ranksOf } from "../reshard/ways.ts";
import type { CommandContext } from "../ui/context.ts";
import { formatBytes, formatCount, formatDuration, formatRanks } from "../ui/format.ts";
import type { Output } from "../ui/output.ts";
import { type Progress, startProgress } from "../ui/progress.ts";
import { formatFields } from "../ui/table.ts";
import type { DemoStep, StepReport } from "./messages.ts";
import { DemoWorld } from "./supervisor.ts";

interface DemoRounds {
  readonly plan: Plan;
  readonly checkpoint: string;
  readonly rounds: number;
  readonly signal: AbortSignal;
}

const timeoutMs = 120_000;
const labels: Readonly<Record<DemoStep, string>> = {
  join: "joining  ",
  train: "training ",
  move: "moving   ",
  verify: "verifying",
};

/** Has both jobs run all rounds, with progress on stderr and a line a round on stdout; bytes a second of the fastest. */
export async function runRounds(context: CommandContext, demo: DemoRounds): Promise<number> {
  const { stdout, stderr } = context;
  const { plan, checkpoint, signal, rounds } = demo;
  const { sourceRanks, targetRanks } = await introduce(stdout, plan, checkpoint);
  const bar = new StepBar(stderr);
  const world = await DemoWorld.start({
    plan,
    checkpoint,
    sourceRanks,
    targetRanks,
    timeoutMs,
    entry: entryScript(),
    signal,
    onProgress: (done, total) => bar.update(done, total),
  });
  await using _world = world;
  const began = performance.now();
  await world.step("join");
  const joined = (performance.now() - began) / 1000;
  await say(stdout, "joined", `${describeBatch(plan)}, ${formatDuration(joined)} after the start`);
  let best = 0;
  let verified = 0;
  for (let round = 1; round <= rounds; round++) {
    const run = (step: DemoStep) =>
      bar.during(`round ${round}: ${labels[step]}`, () => world.step(step, round));
    await run("train");
    const moved = await run("move");
    const compared = sumOf(await run("verify"));
    const seconds = Math.max(...moved.map((report) => report.seconds));
    await say(stdout, `round ${round}`, `${describeMove(moved, seconds)}, verified`);
    best = Math.max(best, sumOf(moved) / seconds);
    verified += compared;
  }
  const all = `${formatBytes(verified)} in ${rounds} rounds of different values, byte for byte`;
  await say(stdout, "verified", all);
  return best;
}

async function introduce(stdout: Output, plan: Plan, checkpoint: string) {
  const pairs = Object.values(plan.input.pairs);
  const sourceRanks = ranksOf(pairs.map(({ source }) => source.mesh.ranks));
  const targetRanks = ranksOf(pairs.map(({ target }) => target.mesh.ranks));
  await say(stdout, "checkpoint", `${checkpoint}, ${formatCount(plan.input.tensors.length)} tensors`);
  const processes = "an agent and a client each, in processes of their own";
  await say(stdout, "trainer", `ranks ${formatRanks(sourceRanks)}, ${processes}`);
  await say(stdout, "engine", `ranks ${formatRanks(targetRanks)}, ${processes}`);
  return { sourceRanks, targetRanks };
}

function describeBatch({ input }: Plan): string {
  return `${formatCount(input.tensors.length)} tensors of ${Object.keys(input.pairs).length} pairs, in one batch`;
}

/** Seconds are those of the slowest rank, as it posted the round until its memory was quiet. */
function describeMove(reports: readonly StepReport[], seconds: number): string {
  const bytes = sumOf(reports);
  const predicted = Math.max(...reports.map(({ predictedSeconds = 0 }) => predictedSeconds));
  const beside = predicted > 0 ? `predicted ${formatDuration(predicted)}` : "memory is new";
  return `${formatBytes(bytes)} in ${formatDuration(seconds)}, ${formatBytes(bytes / seconds)}/s (${beside})`;
}

function sumOf(reports: readonly StepReport[]): number {
  return reports.reduce((sum, { bytes }) => sum + bytes, 0);
}

function say(stdout: Output, label: string, text: string): Promise<void> {
  return stdout.line(formatFields(stdout, [[label.padEnd("checkpoint".length), text]]));
}

/** The bar of the step under way; it appears once all ranks have said how much there is. */
class StepBar {
  readonly #stderr: Output;
  #label: string | undefined;
  #bar: Progress | undefined;
  #total = 0;

  constructor(stderr: Output) {
    this.#stderr = stderr;
  }

  update(done: number, total: number): void {
    if (this.#label === undefined) return;
    const options = { label: this.#label, total, unit: "bytes", lines: 1, transient: true } as const;
    this.#total = total;
    this.#bar ??= startProgress(this.#stderr, options);
    this.#bar.update(done);
  }

  async during<T>(label: string, work: () => Promise<T>): Promise<T> {
    this.#label = label;
    try {
      const result = await work();
      this.#bar?.update(this.#total);
      return result;
    } finally {
      this.#bar?.stop();
      this.#bar = undefined;
      this.#label = undefined;
    }
  }
}
