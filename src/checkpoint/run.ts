/** A run over the work of a mover: items are handed out, noted in the journal once they are durable, and compared. */
import { cancelledError } from "../deadline.ts";
import { TensorBusError } from "../errors.ts";
import { collapseNames } from "../model/names.ts";
import type { Journal } from "./journal.ts";
import { type MovedTensor, restrictTo } from "./kinds.ts";
import { Notes } from "./notes.ts";
import type { PlannedFile } from "./output.ts";
import type { ItemChecksums } from "./scatter.ts";
import { type Stretch, stretchesOf, wholeChecksum } from "./stretches.ts";
import type { Syncer } from "./syncer.ts";
import type { Done, Hand, ItemTask, Order, SumTask, WorkFiles } from "./threads.ts";
import { itemSizeOf, type WorkItem } from "./work.ts";

export type MovePhase = "move" | "verify";

/** Everything that there is to do, and the files that it is done with. */
export interface Work extends WorkFiles {
  readonly tensors: readonly MovedTensor[];
  readonly items: readonly WorkItem[];
}

export interface RunOptions {
  readonly verify: boolean;
  readonly signal?: AbortSignal;
  readonly onProgress?: (phase: MovePhase, done: number, total: number) => void;
  /** Called after each order that was done. */
  readonly onOrder?: () => void;
}

export interface RunSummary {
  readonly movedBytes: number;
  readonly resumedBytes: number;
  readonly verifiedBytes: number;
  /** CRC-32C of each file. */
  readonly checksums: readonly number[];
}

/** Orders have so many bytes, unless one task has more, and at most so many tasks. */
const orderBytes = 8 * 2 ** 20;
const orderTasks = 256;
/** Orders that a hand has at a time, so that it has the next when it is done with one. */
const ordersAhead = 2;

export class Run {
  readonly #work: Work;
  readonly #files: readonly PlannedFile[];
  readonly #hands: readonly Hand[];
  readonly #options: RunOptions;
  readonly #syncer: Syncer;
  readonly #notes: Notes;
  readonly #checksums: Map<number, ItemChecksums>;
  readonly #sizes: readonly number[];

  constructor(
    work: Work,
    files: readonly PlannedFile[],
    hands: readonly Hand[],
    options: RunOptions,
    syncer: Syncer,
    journal: Journal,
  ) {
    this.#work = work;
    this.#files = files;
    this.#hands = hands;
    this.#options = options;
    this.#syncer = syncer;
    this.#notes = new Notes(syncer, journal);
    this.#checksums = new Map(journal.done);
    this.#sizes = work.items.map((item) => itemSizeOf(item, work.tensors[item.tensor]!.kind));
  }

  async run(): Promise<RunSummary> {
    const done = [...this.#checksums.keys()];
    const left = [...this.#sizes.keys()].filter((item) => !this.#checksums.has(item));
    const resumedBytes = this.#bytesOf(done);
    try {
      const movedBytes = await this.#move(left, resumedBytes);
      const { tensors, items } = this.#work;
      const stretches = stretchesOf(this.#files, tensors, items, this.#checksums, orderBytes);
      const verifiedBytes = this.#options.verify ? await this.#verify(stretches) : 0;
      return { movedBytes, resumedBytes, verifiedBytes, checksums: await this.#sumUp(stretches) };
    } finally {
      await this.#notes.settled();
    }
  }

  async #move(left: readonly number[], before: number): Promise<number> {
    const total = this.#bytesOf(this.#sizes.keys());
    let moved = 0;
    try {
      await this.#each(
        left.map((item) => this.#taskOf(item)),
        ({ item }) => this.#sizes[item]!,
        (tasks, { checksums }) => {
          tasks.forEach(({ item, tensor }, index) => {
            this.#checksums.set(item, checksums[index]!);
            for (const { file } of tensor.kind.destinations) this.#syncer.wrote(file);
            this.#notes.add(item, checksums[index]!, this.#sizes[item]!);
            moved += this.#sizes[item]!;
          });
          this.#options.onProgress?.("move", before + moved, total);
        },
      );
    } finally {
      this.#notes.begin();
    }
    return moved;
  }

  /** Reads what was written: files stretch by stretch, and what is not in one piece item by item. */
  async #verify(stretches: readonly (readonly Stretch[] | undefined)[]): Promise<number> {
    const sums = stretches.flatMap((list, file) => list?.map((stretch) => ({ file, ...stretch })) ?? []);
    const items = this.#itemsIn(
      new Set(stretches.flatMap((list, file) => (list === undefined ? [file] : []))),
    );
    const total = sums.reduce((sum, { bytes }) => sum + bytes, this.#bytesOf(items));
    let done = 0;
    let compared = 0;
    const advance = (bytes: number) => {
      done += bytes;
      this.#options.onProgress?.("verify", done, total);
    };
    await this.#each(sums, sizeOfStretch, (tasks, { checksums }) => {
      tasks.forEach((task, index) => {
        this.#requireEqual(task, checksums[index]![0]!);
      });
      const bytes = tasks.reduce((sum, task) => sum + task.bytes, 0);
      compared += bytes;
      advance(bytes);
    });
    const tasks = items.map((item) => ({ ...this.#taskOf(item), checksums: this.#checksums.get(item)! }));
    await this.#each(
      tasks,
      ({ item }) => this.#sizes[item]!,
      (part, { bytes }) => {
        compared += bytes;
        advance(this.#bytesOf(part.map(({ item }) => item)));
      },
    );
    return compared;
  }

  /** `TB_VERIFY` names the file, and what lies there. */
  #requireEqual({ file, at, bytes, checksum }: SumTask & Stretch, found: number): void {
    if (found === checksum) return;
    const names = parametersIn(this.#files[file]!, at, at + bytes);
    const path = this.#work.targets[file]!;
    throw new TensorBusError(
      "TB_VERIFY",
      `${path}: bytes ${at} to ${at + bytes} are not what was read and written there: ${collapseNames(names)}`,
      { details: { file: path, at, bytes, parameters: names } },
    );
  }

  /** Those that have a part in one of these files. */
  #itemsIn(files: ReadonlySet<number>): number[] {
    if (files.size === 0) return [];
    return [...this.#checksums.keys()].filter((item) =>
      this.#taskOf(item).tensor.kind.destinations.some(({ file }) => files.has(file)),
    );
  }

  /** The checksum of each file: joined, or by reading one of which parts are not in one piece. */
  async #sumUp(stretches: readonly (readonly Stretch[] | undefined)[]): Promise<number[]> {
    const sums = new Map<number, Stretch[]>();
    const tasks = stretches.flatMap((list, file) => (list === undefined ? this.#piecesOf(file) : []));
    for (const { file } of tasks) sums.set(file, []);
    await this.#each(tasks, sizeOfStretch, (part, { checksums }) => {
      part.forEach(({ file, ...stretch }, index) => {
        sums.get(file)!.push({ ...stretch, checksum: checksums[index]![0]! });
      });
    });
    return stretches.map((list, file) => wholeChecksum(list ?? sums.get(file)!));
  }

  #piecesOf(file: number): SumTask[] {
    const { bytes } = this.#files[file]!;
    return Array.from({ length: Math.ceil(bytes / orderBytes) }, (_, index) => {
      const at = index * orderBytes;
      return { file, at, bytes: Math.min(orderBytes, bytes - at) };
    });
  }

  #taskOf(item: number): ItemTask {
    const cut = this.#work.items[item]!;
    return { item, tensor: this.#work.tensors[cut.tensor]!, cut };
  }

  /** Hands tasks out in orders, in their order. The first failure ends the run once what is under way has ended. */
  async #each<T extends Order[number]>(
    tasks: readonly T[],
    bytesOf: (task: T) => number,
    onDone: (tasks: readonly T[], done: Done) => void,
  ): Promise<void> {
    const { signal } = this.#options;
    let next = 0;
    let failure: { readonly error: unknown } | undefined;
    const take = (): T[] => {
      const order: T[] = [];
      for (let bytes = 0; next < tasks.length && order.length < orderTasks; next++) {
        bytes += bytesOf(tasks[next]!);
        if (order.length > 0 && bytes > orderBytes) break;
        order.push(tasks[next]!);
      }
      return order;
    };
    const serve = async (hand: Hand) => {
      while (failure === undefined && next < tasks.length) {
        if (signal?.aborted) throw cancelledError("moving the checkpoint", signal);
        const order = take();
        onDone(order, await hand.do(order.map(withoutRest)));
        this.#options.onOrder?.();
      }
    };
    await Promise.all(
      this.#hands.flatMap((hand) =>
        Array.from({ length: ordersAhead }, () =>
          serve(hand).catch((error: unknown) => {
            failure ??= { error };
          }),
        ),
      ),
    );
    if (failure !== undefined) throw (failure as { readonly error: unknown }).error;
  }

  #bytesOf(items: Iterable<number>): number {
    let sum = 0;
    for (const item of items) sum += this.#sizes[item]!;
    return sum;
  }
}

function sizeOfStretch({ bytes }: SumTask): number {
  return bytes;
}

/** The names of the parameters that lie, wholly or in part, between two bytes of a file. */
function parametersIn({ parameters, positions }: PlannedFile, begin: number, end: number): string[] {
  const order = [...positions.keys()].sort((a, b) => positions[a]! - positions[b]!);
  return order.flatMap((index, place) => {
    const next = positions[order[place + 1] ?? -1] ?? Number.POSITIVE_INFINITY;
    return positions[index]! < end && next > begin ? [parameters[index]!.name] : [];
  });
}

/** A task as it is handed out: with what of its tensor it meets. */
function withoutRest(task: Order[number]): Order[number] {
  return "tensor" in task ? { ...task, tensor: restrictTo(task.tensor, task.cut) } : task;
}
