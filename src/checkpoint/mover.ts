/**
 * Moves a checkpoint from files to files: every byte of the source is read once and written where it belongs, by a few threads
 * with a buffer each. What is done is in a journal, so that a run that was killed goes on; files have their final names only
 * when all is written, compared and durable.
 */
import { createHash } from "node:crypto";
import { cancelledError } from "../deadline.ts";
import { TensorBusError } from "../errors.ts";
import { Heap } from "./heap.ts";
import { Journal } from "./journal.ts";
import { type MovedTensor, movedTensors } from "./kinds.ts";
import {
  closeFiles,
  createFiles,
  haveFiles,
  lockFolder,
  openFiles,
  type PlannedFile,
  pathOf,
  planFiles,
  publishFiles,
  syncFolder,
} from "./output.ts";
import { refuseOwnSource } from "./result.ts";
import { type MovePhase, Run, type RunOptions, type RunSummary, type Work } from "./run.ts";
import { type CheckpointSource, type FileSignature, signaturesOf } from "./source.ts";
import { Syncer } from "./syncer.ts";
import { NumberedTensors, requireTensors, type TargetFile, targetDigest } from "./target.ts";
import { type Hand, localHand, threadHand } from "./threads.ts";
import { cutWork, itemSizeOf, type WorkItem } from "./work.ts";

export interface MoveOptions {
  readonly source: CheckpointSource;
  readonly files: readonly TargetFile[];
  readonly folder: string;
  /** Identifies the target: equal digests mean equal files. If the caller gives none, it is computed, which takes longer. */
  readonly digest?: string;
  /** Compare what was written with what was read, by checksums of both. */
  readonly verify: boolean;
  /** How many threads, and the script and command that run one. Without it, or if there is little to do, the caller's thread does all. */
  readonly threads?: { readonly count: number; readonly script: string; readonly command: string };
  readonly signal?: AbortSignal;
  readonly onProgress?: (phase: MovePhase, done: number, total: number) => void;
  /** Called before the first file takes its final name. */
  readonly onPublish?: () => Promise<void> | void;
  /** Called when all files have their final names: what makes them a result. A run that is killed in it goes on with it. */
  readonly onPublished?: (summary: MoveSummary) => Promise<void> | void;
}

export interface MoveSummary {
  /** The bytes of the files that were written, headers included. */
  readonly writtenBytes: number;
  /** The bytes of the source, this time: less than all if a journal had the rest. */
  readonly movedBytes: number;
  readonly resumedBytes: number;
  readonly verifiedBytes: number;
  readonly seconds: number;
  readonly files: readonly {
    readonly name: string;
    readonly bytes: number;
    /** CRC-32C of all of it. */
    readonly checksum: number;
  }[];
}

/**
 * Errors: `TB_NO_SPACE` before anything is moved; `TB_FILE` if a file cannot be read or written, or the source changed; `TB_VERIFY`
 * if what was written is not what was read; `TB_CANCELLED` by the signal. After any of them the folder holds no result, and what
 * was done is kept for the next run with the same source and target.
 */
export async function moveCheckpoint(options: MoveOptions): Promise<MoveSummary> {
  const { source, files, folder, signal } = options;
  requireTensors(files, new NumberedTensors(source.tensors), source.path);
  const signatures = signaturesOf(source.files);
  const heap = new Heap();
  const planned = planFiles(files, heap);
  heap.tidy();
  refuseOwnSource(
    source.files,
    folder,
    planned.map(({ name }) => name),
  );
  const tensors = movedTensors(source.tensors, planned);
  const items = cutWork(tensors);
  const key = workKey(options.digest ?? targetDigest(files), signatures, tensors, items);
  using _lock = lockFolder(folder);
  const found = Journal.find(folder, key, items.length);
  if (found === undefined || !haveFiles(folder, planned, found.isPublishing)) {
    Journal.remove(folder);
    // Before there are files again: a journal that came back after a power failure would say that these are done.
    syncFolder(folder);
    createFiles(folder, planned, heap);
    // Before the journal has a name: after a power failure it must not be there without the files that it is about.
    syncFolder(folder);
  }
  heap.tidy();
  const began = performance.now();
  const journal = Journal.open(folder, key, items.length);
  try {
    // The journal's name has to last before it says of anything that it is done.
    syncFolder(folder);
    const targets = planned.map((file) => pathOf(folder, file, journal.isPublishing));
    const work: Work = { tensors, items, sources: source.files, targets };
    const { checksums, ...counts } = await runWork(
      work,
      planned,
      { ...options, onOrder: () => heap.tidy() },
      journal,
    );
    if (signal?.aborted) throw cancelledError("moving the checkpoint", signal);
    requireUnchanged(signatures, signaturesOf(source.files));
    if (!journal.isPublishing) {
      await options.onPublish?.();
      journal.beginPublishing();
    }
    publishFiles(folder, planned);
    const summary: MoveSummary = {
      ...counts,
      files: planned.map(({ name, bytes }, file) => ({ name, bytes, checksum: checksums[file]! })),
      writtenBytes: planned.reduce((sum, { bytes }) => sum + bytes, 0),
      seconds: (performance.now() - began) / 1000,
    };
    await options.onPublished?.(summary);
    Journal.remove(folder);
    return summary;
  } catch (error) {
    // What is not what was read is not done: the next run would find it again, and stop there for good.
    if (error instanceof TensorBusError && error.code === "TB_VERIFY") Journal.remove(folder);
    throw error;
  } finally {
    journal.close();
  }
}

/** Moves, compares and sums up; all is durable then, and nothing is left open. */
async function runWork(
  work: Work,
  planned: readonly PlannedFile[],
  options: MoveOptions & RunOptions,
  journal: Journal,
): Promise<RunSummary> {
  const opened = openFiles(work.targets, "r+");
  const hands: Hand[] = [];
  try {
    handsFor(work, options, hands);
    return await new Run(work, planned, hands, options, new Syncer(opened), journal).run();
  } finally {
    await Promise.all(hands.map((hand) => hand.close()));
    closeFiles(opened);
  }
}

/**
 * What a journal is of: the same numbers stand for the same items only if the same elements of the same files, cut in the same
 * way, go to the same places. Two prefixes of one checkpoint differ in nothing but where their tensors lie.
 */
function workKey(
  digest: string,
  signatures: readonly FileSignature[],
  tensors: readonly MovedTensor[],
  items: readonly WorkItem[],
): string {
  const hash = createHash("sha256").update(JSON.stringify([digest, signatures]));
  let text = "";
  const add = (line: string) => {
    text += line;
    if (text.length < hashedTogether) return;
    hash.update(text);
    text = "";
  };
  for (const { name, kind, from } of tensors) {
    const { shape, dtype, boxes } = kind;
    add(`\n${JSON.stringify(name)} ${dtype} ${shape.join()}`);
    boxes.forEach(({ file, start, length, strides }, box) => {
      add(`;${file} ${from[box]} ${start.join()} ${length.join()} ${strides.join()}`);
    });
  }
  for (const { tensor, offsets, lengths } of items) add(`\n${tensor} ${offsets.join()} ${lengths.join()}`);
  return hash.update(text).digest("hex");
}

const hashedTogether = 2 ** 16;

/** To start a thread takes longer than to move less than this. */
const threadBytes = 64 * 2 ** 20;
/** Each thread has buffers, and a heap of its own: so many stay within the memory that is promised. */
const maxThreads = 16;

/**
 * This thread, which begins at once, and others that join it once they have started. Adds the hands to those that are closed in
 * the end, one by one: the next may fail.
 */
function handsFor(work: Work, { threads }: MoveOptions, hands: Hand[]): void {
  hands.push(localHand(work));
  const total = work.items.reduce((sum, item) => sum + itemSizeOf(item, work.tensors[item.tensor]!.kind), 0);
  if (threads === undefined || total < threadBytes) return;
  const count = Math.min(threads.count, maxThreads, work.items.length);
  const paths = { sources: work.sources, targets: work.targets };
  while (hands.length < count) hands.push(threadHand(paths, threads.script, threads.command));
}

function requireUnchanged(
  before: ReturnType<typeof signaturesOf>,
  now: ReturnType<typeof signaturesOf>,
): void {
  const changed = before.find((file, index) => JSON.stringify(file) !== JSON.stringify(now[index]));
  if (changed === undefined) return;
  throw new TensorBusError(
    "TB_FILE",
    `${changed.path} changed while it was read: what was written from it cannot be used`,
    {
      details: { path: changed.path },
    },
  );
}
