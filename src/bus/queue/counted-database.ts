/** LMDB's database with a count of what a transaction changes, from which the space that its commit takes is known. */
import { type NativeTransaction, ReadTransaction } from "./read-transaction.ts";

/** Larger values have pages of their own: LMDB wants two nodes on a page. */
const largestInlineBytes = 1900;
const pageBytes = 4096;
/** What LMDB writes with a key and its value: sizes, its place on the page, where a large value lies. */
const nodeBytes = 40;

interface Range {
  readonly start: Buffer;
  readonly end: Buffer;
  readonly limit?: number;
}

/** Whose transaction is read in; LMDB's own one to write comes first. */
interface ReadOptions {
  readonly transaction: NativeTransaction;
}

/** What of LMDB's database is called here. The package's own declarations do not pass a strict check of callers' types. */
interface Root {
  get(key: Buffer, options?: ReadOptions): Buffer | undefined;
  put(key: Buffer, value: Buffer): unknown;
  remove(key: Buffer): unknown;
  getRange(range: Range & Partial<ReadOptions>): Iterable<{ readonly key: Buffer; readonly value: Buffer }>;
  getKeys(range: Range & Partial<ReadOptions>): Iterable<Buffer>;
  readerCheck(): unknown;
  transactionSync(work: () => unknown): unknown;
}

export class CountedDatabase {
  /** Since `resetCounts`. */
  puts = 0;
  removes = 0;
  /** Bytes of keys and values that lie on pages with others. */
  smallBytes = 0;
  /** Pages that large values take. */
  bigPages = 0;
  readonly #root: Root;
  readonly #reading: ReadTransaction;
  #options: ReadOptions | undefined;
  #depth = 0;

  constructor(root: Root) {
    this.#root = root;
    this.#reading = new ReadTransaction(root);
  }

  resetCounts(): void {
    this.puts = 0;
    this.removes = 0;
    this.smallBytes = 0;
    this.bigPages = 0;
  }

  get(key: Buffer): Buffer | undefined {
    return this.#root.get(key, this.#options);
  }

  /** Inside of a write transaction. */
  put(key: Buffer, value: Buffer): void {
    this.puts += 1;
    if (value.length > largestInlineBytes) this.bigPages += Math.ceil(value.length / pageBytes) + 1;
    else this.smallBytes += value.length;
    this.smallBytes += key.length + nodeBytes;
    this.#root.put(key, value);
  }

  /** Inside of a write transaction. */
  remove(key: Buffer): void {
    this.removes += 1;
    this.#root.remove(key);
  }

  getRange(range: Range): Iterable<{ readonly key: Buffer; readonly value: Buffer }> {
    return this.#root.getRange({ ...range, ...this.#options });
  }

  getKeys(range: Range): Iterable<Buffer> {
    return this.#root.getKeys({ ...range, ...this.#options });
  }

  /** True inside of a transaction: what is read there is of that one. */
  get isInTransaction(): boolean {
    return this.#depth > 0;
  }

  /** Sees what was committed last; `begun` is called before anything is read. */
  readSync<T>(begun: () => void, work: () => T): T {
    this.#options = this.#reading.begin();
    this.#depth += 1;
    try {
      begun();
      return work();
    } finally {
      this.#depth -= 1;
      this.#options = undefined;
      this.#reading.end();
    }
  }

  readerCheck(): number {
    return this.#root.readerCheck() as number;
  }

  transactionSync<T>(work: () => T): T {
    this.#depth += 1;
    try {
      return this.#root.transactionSync(work) as T;
    } finally {
      this.#depth -= 1;
    }
  }

  /** Before LMDB's own is closed. */
  close(): void {
    this.#reading.close();
  }
}
