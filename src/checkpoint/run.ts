/** A run over the work of a mover: items are handed out, noted in the journal once they are durable, and compared. */
import { cancelledError } from "../deadline.ts";
import { joinChecksums } from "./checksum.ts";
import type { Journal } from "./journal.ts";
import type { ItemChecksums } from "./scatter.ts";
import type { Syncer } from "./syncer.ts";
import type { Done, Hand, ItemTask, Order, SumTask, WorkFiles } from "./threads.ts";
import { itemSizeOf, type MovedTensor, restrictTo, type WorkItem } from "./work.ts";

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
}

export interface RunSummary {
  readonly movedBytes: number;
  readonly resumedBytes: number;
  readonly verifiedBytes: number;
  readonly checksums: ReadonlyMap<number, ItemChecksums>;
}

/** After so many bytes what was written begins to be made durable, beside what goes on. */
const syncBytes = 128 * 2 ** 20;
/** Orders have so many bytes, unless one task has more, and at most so many tasks. */
const orderBytes = 8 * 2 ** 20;
const orderTasks = 256;
/** Orders that a hand has at a time, so that it has the next when it is done with one. */
const ordersAhead = 2;

export class Run {
  readonly #work: Work;
  readonly #hands: readonly Hand[];
  readonly #options: RunOptions;
  readonly #syncer: Syncer;
  readonly #notes: Notes;
  readonly #checksums: Map<number, ItemChecksums>;
  readonly #sizes: readonly number[];

  constructor(work: Work, hands: readonly Hand[], options: RunOptions, syncer: Syncer, journal: Journal) {
    this.#work = work;
    this.#hands = hands;
    this.#options = options;
    this.#syncer = syncer;
    this.#notes = new Notes(syncer, journal);
    this.#checksums = new Map(journal.done);
    this.#sizes = work.items.map((item) => itemSizeOf(item, work.tensors[item.tensor]!));
  }

  async run(): Promise<RunSummary> {
    const done = [...this.#checksums.keys()];
    const left = [...this.#sizes.keys()].filter((item) => !this.#checksums.has(item));
    const resumedBytes = this.#bytesOf(done);
    let movedBytes = 0;
    let verifiedBytes = 0;
    try {
      movedBytes = await this.#move(left, resumedBytes);
      if (this.#options.verify) verifiedBytes = await this.#verify();
    } finally {
      await this.#notes.settled();
    }
    return { movedBytes, resumedBytes, verifiedBytes, checksums: this.#checksums };
  }

  /** The checksums of whole files, by reading them. */
  async sum(
    files: readonly { readonly file: number; readonly bytes: number }[],
  ): Promise<Map<number, number>> {
    const stretches = files.flatMap(({ file, bytes }) =>
      Array.from({ length: Math.ceil(bytes / orderBytes) }, (_, index): SumTask => {
        const at = index * orderBytes;
        return { file, at, bytes: Math.min(orderBytes, bytes - at) };
      }),
    );
    const parts = new Map<SumTask, number>();
    await this.#each(
      stretches,
      ({ bytes }) => bytes,
      (tasks, { checksums }) => {
        tasks.forEach((task, index) => {
          parts.set(task, checksums[index]![0]!);
        });
      },
    );
    const sums = new Map(files.map(({ file }) => [file, 0]));
    for (const task of stretches) {
      sums.set(task.file, joinChecksums(sums.get(task.file)!, parts.get(task)!, task.bytes));
    }
    return sums;
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
            for (const { file } of tensor.destinations) this.#syncer.wrote(file);
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

  async #verify(): Promise<number> {
    const total = this.#bytesOf(this.#checksums.keys());
    let compared = 0;
    let done = 0;
    const tasks = [...this.#checksums].map(([item, checksums]) => ({ ...this.#taskOf(item), checksums }));
    await this.#each(
      tasks,
      ({ item }) => this.#sizes[item]!,
      (part, { bytes }) => {
        compared += bytes;
        done += this.#bytesOf(part.map(({ item }) => item));
        this.#options.onProgress?.("verify", done, total);
      },
    );
    return compared;
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

/** Notes items once they are durable, while others are moved: one sync at a time. */
class Notes {
  readonly #syncer: Syncer;
  readonly #journal: Journal;
  #written: [item: number, checksums: ItemChecksums][] = [];
  #bytes = 0;
  #underWay = 0;
  #last: Promise<void> = Promise.resolve();
  #failure: { readonly error: unknown } | undefined;

  constructor(syncer: Syncer, journal: Journal) {
    this.#syncer = syncer;
    this.#journal = journal;
  }

  /** An item was written. Throws if an earlier one could not be made durable, or noted. */
  add(item: number, checksums: ItemChecksums, bytes: number): void {
    this.#requireDurable();
    this.#written.push([item, checksums]);
    this.#bytes += bytes;
    if (this.#bytes >= syncBytes && this.#underWay === 0) this.begin();
  }

  /** Begins with what is written, behind what is under way. */
  begin(): void {
    this.#last = this.#sync(this.#last);
  }

  /** Everything that was written is durable, and noted. */
  async settled(): Promise<void> {
    await this.#last;
    this.#requireDurable();
  }

  async #sync(before: Promise<void>): Promise<void> {
    this.#underWay++;
    await before;
    const written = this.#written;
    [this.#written, this.#bytes] = [[], 0];
    try {
      await this.#syncer.sync();
      this.#journal.add(written);
    } catch (error) {
      this.#failure ??= { error };
    }
    this.#underWay--;
  }

  #requireDurable(): void {
    if (this.#failure !== undefined) throw this.#failure.error;
  }
}

/** A task as it is handed out: with what of its tensor it meets. */
function withoutRest(task: Order[number]): Order[number] {
  return "tensor" in task ? { ...task, tensor: restrictTo(task.tensor, task.cut) } : task;
}
