/**
 * An LMDB environment that several processes write, and none of them can stop the others' event loops. A write is done on
 * the event loop, since it takes microseconds once LMDB's lock is free; the gate in C tells whether it is, and its thread
 * waits if it is not (docs/adr/0007-queue-writes.md).
 */
import { join } from "node:path";
import { open, type RootDatabase } from "lmdb";
import { Deadline, type DeadlineOptions, waitUntil } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import { nativeBus } from "../../ffi/bus.ts";
import type { EventPort } from "../process/event-port.ts";
import {
  type FolderKind,
  fileError,
  folderFiles,
  formatError,
  isOfThisBoot,
  prepareFormat,
  preparePrivateFolder,
} from "../process/folder.ts";
import { FolderUse } from "../process/liveness.ts";
import { sweepNames } from "../process/names.ts";
import { CountedDatabase } from "./counted-database.ts";
import { openOnceKnown, usersError, usersKnown } from "./file-users.ts";
import { LmdbViews } from "./lmdb-views.ts";

interface EnvironmentOptions {
  /** A folder; made if it is missing. */
  readonly path: string;
  readonly kind: FolderKind;
  readonly port: EventPort;
  /** Address space that the file may grow into; the file takes only what it holds. Default 1 GiB. */
  readonly mapBytes?: number;
  /** Milliseconds that a write waits for another process's to end, before `TB_QUEUE_STUCK`; default 1,000. */
  readonly stuckMs?: number;
}

/**
 * Keys and values are bytes. An environment has one database: each further one would cost every transaction that touches
 * it two more pages. The first byte of a key says what it is the key of.
 */
export type BinaryDatabase = Pick<
  CountedDatabase,
  "get" | "put" | "remove" | "getRange" | "getKeys" | "transactionSync"
>;

const defaultMapBytes = 2 ** 30;
const defaultStuckMs = 1000;
/** `TB_LMDB_READERS` of native/src/host/lmdb.h. */
const maxReaders = 1024;
/** Another's write takes about 10 µs: looking again is cheaper than a thread. */
const spinNs = 100_000n;
/** `TB_GATE_USUAL_CHANGES` and `TB_GATE_USUAL_BYTES`: the gate tells when it is entered whether so much has its space. */
const usualChanges = 8;
const usualBytes = 4096;
/** Writes that one pass through the gate serves at most, so that others get their turn. */
const writesPerPass = 32;

interface Job {
  /** Does the work; what is returned tells the one who waits, once the gate was left. */
  readonly run: () => () => void;
  readonly fail: (error: unknown) => void;
}

/**
 * LMDB must open an environment once in a process, whoever asks for it: its lock files know processes, not callers. The
 * map goes by real paths and counts those who share.
 */
const opened = new Map<string, { root: RootDatabase<Buffer, Buffer>; users: number }>();

/** Opens an environment in a private folder, which must be of that kind and of this package's LMDB. */
export async function openEnvironment(
  options: EnvironmentOptions,
  deadline: DeadlineOptions = {},
): Promise<Environment> {
  const path = preparePrivateFolder(options.path);
  const environment = new Environment(path, options);
  try {
    await environment.enterToOpen(deadline);
  } catch (error) {
    await environment.close();
    // Whoever follows the advice to remove the folder removes the only place that names what the dead have left.
    if (error instanceof TensorBusError && error.code === "TB_BUS_FORMAT") sweepNames();
    throw error;
  }
  return environment;
}

export class Environment implements AsyncDisposable {
  /** The real path of its folder. */
  readonly path: string;
  /** The file of its locks: `lockOffsets`. */
  readonly locksPath: string;
  readonly #options: EnvironmentOptions;
  readonly #port: EventPort;
  readonly #stuckMs: number;
  readonly #mapBytes: number;
  /** LMDB's: its data and its locks. */
  readonly #files: readonly [string, string];
  readonly #token: bigint;
  readonly #gate: bigint;
  readonly #waiting: Job[] = [];
  #use: FolderUse | undefined;
  #root: RootDatabase<Buffer, Buffer> | undefined;
  #counted: CountedDatabase | undefined;
  #release: (() => void) | undefined;
  #holder = 0;
  /** The space of the next transaction is taken already, if that is a usual one. */
  #hasRoom = false;
  #closed = false;
  #views: LmdbViews | undefined;
  /** LMDB has begun a transaction to read, and nothing was read in it. */
  readonly #begunReading = (): void => {
    nativeBus.tb_gate_check(this.#gate);
  };
  /** The same of one to write, for which the files were looked at on entering. */
  readonly #begun = (): void => {
    if (this.#views!.haveTrees) return;
    nativeBus.tb_gate_check(this.#gate);
    throw formatError(this.path, `${this.#files[0]} is damaged: a meta page is invalid`);
  };

  constructor(path: string, options: EnvironmentOptions) {
    this.path = path;
    this.locksPath = join(path, folderFiles.locks);
    this.#options = options;
    this.#port = options.port;
    this.#stuckMs = options.stuckMs ?? defaultStuckMs;
    this.#mapBytes = options.mapBytes ?? defaultMapBytes;
    this.#files = [join(path, folderFiles.data), join(path, folderFiles.lock)];
    this.#token = this.#port.listen(() => this.#pass());
    try {
      this.#gate = nativeBus.tb_gate_open(this.#port.handle, this.locksPath, this.#token);
    } catch (error) {
      this.#port.unlisten(this.#token);
      throw error;
    }
  }

  /** Opens LMDB inside the gate: opening writes. Only for `openEnvironment`. */
  async enterToOpen(deadline: DeadlineOptions): Promise<void> {
    // A process that holds LMDB's lock past the gate would hold up the opening too; a lock file that is about to go tells nothing.
    if (isOfThisBoot(this.path)) nativeBus.tb_gate_attach(this.#gate, ...this.#files);
    const within = new Deadline({ timeoutMs: this.#stuckMs, ...deadline });
    const tryOnce = () => this.#inside(`opening ${this.path}`, () => this.#open(), within.rest);
    try {
      const users = await openOnceKnown(tryOnce, within);
      if (users !== usersKnown)
        throw usersError(users, { path: this.path, locksPath: this.locksPath, lockPath: this.#files[1] });
    } catch (error) {
      throw this.#typed(error);
    }
  }

  /** Its records. Whoever writes to it outside of `write` passes no gate, and may block. */
  get root(): BinaryDatabase {
    return this.#records;
  }

  get #records(): CountedDatabase {
    if (this.#counted === undefined) throw new TensorBusError("TB_CLOSED", `${this.path} was closed`);
    return this.#counted;
  }

  /**
   * Runs `work` in one write transaction: all of it or, if it throws, nothing. At once if the gate is free, else in
   * turn behind the writes that wait already. `TB_QUEUE_STUCK` if another process does not free the lock in time, and
   * then, as with `TB_CANCELLED`, `work` has not run and will not.
   */
  write<T>(what: string, work: () => T, deadline: DeadlineOptions = {}): Promise<T> {
    return this.#inside(what, () => this.#transact(work), deadline);
  }

  /** Like `write`, if that needs no waiting; `undefined` if it does, and then nothing has happened. */
  tryWrite<T>(work: () => T): { readonly value: T } | undefined {
    return this.#tryInside(() => this.#transact(work));
  }

  /** Reads what was committed last; the values are the caller's. `TB_BUS_FORMAT` if the files were damaged. */
  read<T>(work: () => T): T {
    const records = this.#records;
    if (records.isInTransaction) return work();
    const views = this.#views!;
    try {
      const before = views.lostPages;
      const value = records.readSync(this.#begunReading, work);
      if (views.lostPages !== before) nativeBus.tb_gate_check(this.#gate);
      return value;
    } catch (error) {
      throw this.#damage() ?? this.#typed(error);
    }
  }

  /** What is wrong with the files: the reason of whatever else has failed. */
  #damage(): unknown {
    try {
      nativeBus.tb_gate_check(this.#gate);
      return undefined;
    } catch (error) {
      return this.#typed(error);
    }
  }

  /** For a caller that waits for an answer: `TB_BUS_FORMAT` if the files were damaged, since none will come. */
  examine(): void {
    this.read(() => {});
  }

  /** `TB_NO_SPACE` if not even a small record finds room; says nothing while another process writes. */
  examineRoom(): void {
    try {
      this.#tryInside(() => nativeBus.tb_gate_reserve(this.#gate, 1, 0, 0, 0));
    } catch (error) {
      throw this.#typed(error);
    }
  }

  /** Frees the reader slots of dead processes; how many there were. */
  readerCheck(deadline: DeadlineOptions = {}): Promise<number> {
    return this.#inside("looking for dead readers", () => this.#records.readerCheck(), deadline);
  }

  /** Waiting writes end with `TB_CLOSED`. A second call does nothing. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    for (const job of this.#waiting.splice(0)) job.run()();
    this.#release?.();
    this.#port.unlisten(this.#token);
    try {
      // The gate guards the files as long as LMDB touches them.
      await this.#closeRoot();
    } finally {
      this.#views = undefined;
      nativeBus.tb_gate_close(this.#gate);
      this.#use?.close();
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #closeRoot(): Promise<void> {
    if (this.#root === undefined) return;
    this.#root = undefined;
    this.#counted?.close();
    this.#counted = undefined;
    const shared = opened.get(this.path);
    if (shared !== undefined && --shared.users === 0) {
      opened.delete(this.path);
      await shared.root.close();
    }
  }

  #inside<T>(what: string, work: () => T, options: DeadlineOptions): Promise<T> {
    try {
      const done = options.signal?.aborted === true ? undefined : this.#tryInside(work);
      return done === undefined ? this.#wait(what, work, options) : Promise.resolve(done.value);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  #tryInside<T>(work: () => T): { readonly value: T } | undefined {
    if (this.#closed) throw new TensorBusError("TB_CLOSED", `${this.path} was closed`);
    if (this.#waiting.length > 0 || !this.#enter()) return undefined;
    let value: T;
    try {
      value = work();
    } catch (error) {
      this.#leave();
      throw error;
    }
    this.#leave();
    return { value };
  }

  #enter(): boolean {
    try {
      const [entered, holder] = nativeBus.tb_gate_enter(this.#gate, spinNs);
      this.#holder = holder;
      this.#hasRoom = entered === 2;
      return entered !== 0;
    } catch (error) {
      throw this.#typed(error);
    }
  }

  /** `TB_BUS_FORMAT` if the files were cut meanwhile: what was done inside is not to be believed, failed or not. */
  #leave(): void {
    try {
      nativeBus.tb_gate_leave(this.#gate);
    } catch (error) {
      throw this.#typed(error);
    }
  }

  async #wait<T>(what: string, work: () => T, options: DeadlineOptions): Promise<T> {
    const timeoutMs = Math.min(options.timeoutMs ?? this.#stuckMs, this.#stuckMs);
    const deadline = new Deadline({ ...options, timeoutMs });
    try {
      return await waitUntil<T>(what, deadline, (resolve, reject) => {
        const job = { run: () => this.#settle(work, resolve, reject), fail: reject };
        this.#waiting.push(job);
        this.#release ??= this.#port.hold();
        nativeBus.tb_gate_await(this.#gate);
        return () => this.#forget(job);
      });
    } catch (error) {
      if (!(error instanceof TensorBusError) || error.code !== "TB_TIMEOUT") throw error;
      throw new TensorBusError(
        "TB_QUEUE_STUCK",
        `${what}: another process has held the write lock of ${this.path} for ${Math.round(timeoutMs)} ms` +
          (this.#holder === 0 ? "" : `; it is thread ${this.#holder}`),
        { details: { path: this.path, holder: this.#holder, timeoutMs } },
      );
    }
  }

  #settle<T>(work: () => T, resolve: (value: T) => void, reject: (error: unknown) => void): () => void {
    if (this.#closed) return () => reject(new TensorBusError("TB_CLOSED", `${this.path} was closed`));
    try {
      const value = work();
      return () => resolve(value);
    } catch (error) {
      return () => reject(error);
    }
  }

  #forget(job: Job): void {
    const index = this.#waiting.indexOf(job);
    if (index >= 0) this.#waiting.splice(index, 1);
    if (this.#waiting.length > 0) return;
    this.#release?.();
    this.#release = undefined;
  }

  /** The gate was seen free: the writes that wait go first, in their order. */
  #pass(): void {
    if (this.#closed || this.#waiting.length === 0) return;
    const jobs = this.#waiting.slice(0, writesPerPass);
    try {
      if (this.#enter()) {
        const told = jobs.map(({ run }) => run());
        this.#leave();
        for (const tell of told) tell();
      }
    } catch (error) {
      for (const job of jobs) job.fail(error);
    }
    if (this.#waiting.length > 0) nativeBus.tb_gate_await(this.#gate);
  }

  #transact<T>(work: () => T): T {
    const records = this.#records;
    const views = this.#views!;
    const before = views.lostPages;
    records.resetCounts();
    try {
      return records.transactionSync(() => {
        this.#begun();
        const value = work();
        if (views.lostPages !== before) nativeBus.tb_gate_check(this.#gate);
        this.#reserve(records);
        return value;
      });
    } catch (error) {
      throw this.#typed(error);
    }
  }

  /** Reserves the space that the commit may take: if a write of its fails, LMDB overruns its memory. */
  #reserve({ puts, removes, smallBytes, bigPages }: CountedDatabase): void {
    const hadRoom = this.#hasRoom;
    this.#hasRoom = false;
    const isUsual = puts + removes <= usualChanges && smallBytes <= usualBytes && bigPages === 0;
    if (puts + removes === 0 || (hadRoom && isUsual)) return;
    nativeBus.tb_gate_reserve(this.#gate, puts, removes, smallBytes, bigPages);
  }

  /** Anything but `usersKnown`: it is not open, and may be tried again. */
  #open(): number {
    const known = opened.get(this.path);
    this.#use = new FolderUse(this.locksPath);
    if (known !== undefined && !this.#use.others) {
      throw formatError(
        this.path,
        `${this.locksPath} was removed, and another made, while this process uses it`,
      );
    }
    const users = known === undefined ? this.#prepare(this.#use.others) : usersKnown;
    if (users !== usersKnown) {
      this.#use.close();
      this.#use = undefined;
      return users;
    }
    const shared = known ?? this.#openShared();
    shared.users++;
    // From here on `close` closes it, if something fails.
    this.#root = shared.root;
    this.#use.begin();
    this.#counted = new CountedDatabase(shared.root);
    nativeBus.tb_gate_attach(this.#gate, ...this.#files);
    this.#views = new LmdbViews(nativeBus.tb_gate_guard(this.#gate, ...this.#files));
    // Takes this thread's slot in the reader table, which needs a lock of its own, while nobody else can hold that. The lock
    // is looked at before: what is begun to be read later needs none.
    nativeBus.tb_gate_check(this.#gate);
    this.read(() => this.#counted!.get(Buffer.from([0])));
    this.#verifyLock();
    return usersKnown;
  }

  /** Before the first opening in this thread: looks at all that LMDB would trust. */
  #prepare(others: boolean): number {
    prepareFormat(this.path, this.#options.kind, others);
    return nativeBus.tb_gate_prepare(this.#gate, ...this.#files, BigInt(this.#mapBytes));
  }

  #openShared(): { root: RootDatabase<Buffer, Buffer>; users: number } {
    const shared = { root: this.#openRoot(), users: 0 };
    opened.set(this.path, shared);
    return shared;
  }

  #openRoot(): RootDatabase<Buffer, Buffer> {
    try {
      return open<Buffer, Buffer>({
        path: this.path,
        noSubdir: false,
        // A commit reaches the page cache: it survives every process, though not the machine. Folders of another boot are
        // discarded, so that what a lost machine leaves behind is never read.
        noSync: true,
        overlappingSync: false,
        // A map that never grows is never remapped under another process.
        mapSize: this.#mapBytes,
        maxReaders,
        // @ts-expect-error: documented and honoured, but missing from the package's types.
        permissionsMode: 0o600,
        keyEncoding: "binary",
        encoding: "binary",
      });
    } catch (error) {
      throw this.#typed(error);
    }
  }

  /** An error of LMDB, or of the gate, with the folder and what to do. */
  #typed(error: unknown): unknown {
    const { path } = this;
    if (!(error instanceof Error)) return error;
    if (error instanceof TensorBusError) {
      if (error.details["path"] !== undefined) return error;
      if (error.code === "TB_BUS_FORMAT") return formatError(path, error.message);
      if (error.code === "TB_NO_SPACE") return this.#full(error);
      return error;
    }
    if (fullPattern.test(error.message)) return this.#full(error);
    if (damagedPattern.test(error.message)) {
      return formatError(path, `${path} is damaged (${error.message})`, {}, error);
    }
    const { code } = error as NodeJS.ErrnoException;
    return typeof code === "string" ? fileError(path, error) : error;
  }

  #full(cause: Error): TensorBusError {
    const message = `${this.path} is full (${cause.message}): free some space, or name a folder elsewhere`;
    return new TensorBusError("TB_NO_SPACE", message, { cause, details: { path: this.path } });
  }

  /** The gate looks at a word in LMDB's lock file: it must be the one that a write transaction sets. */
  #verifyLock(): void {
    const owned = this.#transact(() => nativeBus.tb_gate_verify(this.#gate));
    if (owned === 1) return;
    const message = "the lock file of the package lmdb does not have the layout of version 3.5";
    throw new TensorBusError("TB_LIBRARY", message, { details: { path: this.path } });
  }
}

/** What LMDB says of a map or a file system that is full; a short write is an EIO there. */
const fullPattern = /MDB_MAP_FULL|No space left|Disk quota|File too large|Input\/output error/;
const damagedPattern =
  /MDB_(CORRUPTED|PAGE_NOTFOUND|PANIC|INVALID|VERSION_MISMATCH|BAD_TXN|BAD_RSLOT|PAGE_FULL|CURSOR_FULL)/;

/** A key: what it is of, then numbers of 64 bits, in their order. */
export function keyOf(kind: number, ...numbers: readonly bigint[]): Buffer {
  const key = Buffer.allocUnsafe(1 + numbers.length * 8);
  key[0] = kind;
  numbers.forEach((number, i) => {
    key.writeBigUInt64BE(number, 1 + i * 8);
  });
  return key;
}

/** All keys of a kind. */
export function rangeOf(kind: number): { start: Buffer; end: Buffer } {
  return { start: Buffer.from([kind]), end: Buffer.from([kind + 1]) };
}
