/** LMDB's database with a count of what a transaction changes, from which the space that its commit takes is known. */

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

/** What of LMDB's database is called here. The package's own declarations do not pass a strict check of callers' types. */
interface Root {
  get(key: Buffer): Buffer | undefined;
  put(key: Buffer, value: Buffer): unknown;
  remove(key: Buffer): unknown;
  getRange(range: Range): Iterable<{ readonly key: Buffer; readonly value: Buffer }>;
  getKeys(range: Range): Iterable<Buffer>;
  resetReadTxn(): void;
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

  constructor(root: Root) {
    this.#root = root;
  }

  resetCounts(): void {
    this.puts = 0;
    this.removes = 0;
    this.smallBytes = 0;
    this.bigPages = 0;
  }

  get(key: Buffer): Buffer | undefined {
    return this.#root.get(key);
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
    return this.#root.getRange(range);
  }

  getKeys(range: Range): Iterable<Buffer> {
    return this.#root.getKeys(range);
  }

  /** Sees what was committed last. */
  readSync<T>(work: () => T): T {
    this.#root.resetReadTxn();
    try {
      return work();
    } finally {
      // LMDB would end it by a timer, whose touch of a lock file that was cut meanwhile nobody looks at before.
      this.#root.resetReadTxn();
    }
  }

  readerCheck(): number {
    return this.#root.readerCheck() as number;
  }

  transactionSync<T>(work: () => T): T {
    return this.#root.transactionSync(work) as T;
  }
}
