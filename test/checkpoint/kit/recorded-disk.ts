/**
 * What a folder may hold after a power failure. The calls that change it are recorded as they are made; from them follow all the
 * states that a disk may be left in: names that were given, taken or removed since the folder was synced last may or may not be
 * so, each for itself, and of a file only what was synced is sure.
 */
import type * as fs from "node:fs";
import type * as promises from "node:fs/promises";
import { basename, dirname, join } from "node:path";

type Fs = typeof fs;
type Promises = typeof promises;

export type Step =
  | { readonly kind: "name"; readonly name: string; readonly file: number }
  | { readonly kind: "rename"; readonly from: string; readonly name: string; readonly file: number }
  | { readonly kind: "unname"; readonly name: string }
  | { readonly kind: "write"; readonly file: number; readonly contents: Buffer }
  | { readonly kind: "sync"; readonly file: number; readonly site: string }
  | { readonly kind: "sync folder"; readonly site: string };

/** A state: what each name stands for. */
export type State = ReadonlyMap<string, Buffer>;

export class RecordedDisk {
  steps: Step[] = [];
  #folder: string | undefined;
  #files = 0;
  #begun = 0;
  /** The file that a name stands for, and that an open one is. */
  readonly #names = new Map<string, number>();
  readonly #open = new Map<number, string>();

  /** Records from now on what is done in a folder, as it is now. */
  begin(folder: string, { readdirSync, readFileSync }: Fs): void {
    this.steps = [];
    this.#names.clear();
    this.#folder = folder;
    for (const name of readdirSync(folder)) {
      const file = this.#files++;
      this.#names.set(name, file);
      this.steps.push(
        { kind: "name", name, file },
        { kind: "write", file, contents: readFileSync(join(folder, name)) },
        { kind: "sync", file, site: "" },
      );
    }
    this.steps.push({ kind: "sync folder", site: "" });
    this.#begun = this.steps.length;
  }

  /** What the folder was before, and what was done since. */
  end(): { readonly before: readonly Step[]; readonly steps: readonly Step[] } {
    this.#folder = undefined;
    return { before: this.steps.slice(0, this.#begun), steps: this.steps.slice(this.#begun) };
  }

  fs(original: Fs): Fs {
    const { openSync, writeSync, fsyncSync, fdatasync, renameSync, rmSync, truncateSync } = original;
    const wrapped = {
      ...original,
      promises: this.promises(original.promises, original),
      openSync: (path: string, flags: string) => {
        const fd = openSync(path, flags);
        this.#opened(path, fd);
        return fd;
      },
      writeSync: (fd: number, ...rest: [Uint8Array]) => {
        const count = writeSync(fd, ...rest);
        this.#wrote(fd, original);
        return count;
      },
      // What nobody records is not made durable: nobody asks what is left of it, and it takes long.
      fsyncSync: (fd: number) => {
        if (this.#folder === undefined) return;
        fsyncSync(fd);
        this.#synced(fd, original);
      },
      fdatasync: (fd: number, done: (error: NodeJS.ErrnoException | null) => void) =>
        this.#folder === undefined
          ? setImmediate(done, null)
          : fdatasync(fd, (error) => {
              this.#synced(fd, original);
              done(error);
            }),
      renameSync: (from: string, to: string) => {
        renameSync(from, to);
        this.#renamed(from, to);
      },
      rmSync: (path: string, options?: fs.RmOptions) => {
        rmSync(path, options);
        this.#removed(path);
      },
      truncateSync: (path: string, bytes: number) => {
        truncateSync(path, bytes);
        const file = this.#names.get(basename(path));
        if (this.#isInside(path) && file !== undefined)
          this.steps.push({ kind: "write", file, contents: original.readFileSync(path) });
      },
    };
    return { ...wrapped, default: wrapped } as unknown as Fs;
  }

  promises(original: Promises, sync: Fs): Promises {
    const { open, rename, rm } = original;
    const wrapped = {
      ...original,
      open: async (path: string, ...rest: [string]) => {
        const handle = await open(path, ...rest);
        this.#opened(path, handle.fd);
        const { fd } = handle;
        const [writeFile, synchronize] = [handle.writeFile.bind(handle), handle.sync.bind(handle)];
        return Object.assign(handle, {
          writeFile: async (contents: Uint8Array) => {
            await writeFile(contents);
            this.#wrote(fd, sync);
          },
          sync: async () => {
            if (this.#folder === undefined) return;
            await synchronize();
            this.#synced(fd, sync);
          },
        });
      },
      rename: async (from: string, to: string) => {
        await rename(from, to);
        this.#renamed(from, to);
      },
      rm: async (path: string, options?: fs.RmOptions) => {
        await rm(path, options);
        this.#removed(path);
      },
    };
    return { ...wrapped, default: wrapped } as unknown as Promises;
  }

  #isInside(path: string): boolean {
    return this.#folder !== undefined && dirname(path) === this.#folder;
  }

  #opened(path: string, fd: number): void {
    this.#open.set(fd, path);
    const name = basename(path);
    if (!this.#isInside(path) || this.#names.has(name)) return;
    this.#names.set(name, this.#files);
    this.steps.push({ kind: "name", name, file: this.#files++ });
  }

  #fileOf(fd: number): { readonly name: string; readonly file: number } | undefined {
    const path = this.#open.get(fd);
    if (path === undefined || !this.#isInside(path)) return undefined;
    const name = basename(path);
    const file = this.#names.get(name);
    return file === undefined ? undefined : { name, file };
  }

  #wrote(fd: number, { readFileSync }: Fs): void {
    const found = this.#fileOf(fd);
    if (found === undefined) return;
    this.steps.push({ kind: "write", file: found.file, contents: readFileSync(`/proc/self/fd/${fd}`) });
  }

  #synced(fd: number, { readFileSync }: Fs): void {
    if (this.#open.get(fd) === this.#folder && this.#folder !== undefined) {
      this.steps.push({ kind: "sync folder", site: siteOfCall() });
      return;
    }
    const found = this.#fileOf(fd);
    if (found === undefined) return;
    // What the system was asked to reserve is in no call that is recorded.
    this.steps.push(
      { kind: "write", file: found.file, contents: readFileSync(`/proc/self/fd/${fd}`) },
      { kind: "sync", file: found.file, site: `${siteOfCall()} ${found.name}` },
    );
  }

  #renamed(from: string, to: string): void {
    if (!this.#isInside(from)) return;
    const file = this.#names.get(basename(from))!;
    this.#names.delete(basename(from));
    this.#names.set(basename(to), file);
    this.steps.push({ kind: "rename", from: basename(from), name: basename(to), file });
  }

  #removed(path: string): void {
    if (!this.#isInside(path) || !this.#names.delete(basename(path))) return;
    this.steps.push({ kind: "unname", name: basename(path) });
  }
}

/** Functions and lines of the sources that a call comes from. */
function siteOfCall(): string {
  const calls = new Error().stack!.split("\n").flatMap((line) => {
    const [, name = "", place] = /at (?:async )?(\S+ )?\(?\S*\/src\/(\S+\.ts:\d+)/.exec(line) ?? [];
    return place === undefined ? [] : [name + place];
  });
  return calls.slice(0, 2).join(" of ");
}

type Naming = Extract<Step, { readonly kind: "name" | "rename" | "unname" }>;

/** Changes of names that may or may not be so: more of them at a time would be too many states. */
const mostAtOnce = 12;

/** All states that the disk may be left in if the power fails between two of the steps, each once. */
export function* statesOf(before: readonly Step[], steps: readonly Step[]): Generator<State> {
  const seen = new Set<string>();
  const sure = new Map<string, number>();
  const pending: Naming[] = [];
  const written = new Map<number, Buffer>();
  const durable = new Map<number, Buffer>();
  for (const [index, step] of [...before, ...steps].entries()) {
    if (step.kind === "write") written.set(step.file, step.contents);
    else if (step.kind === "sync") durable.set(step.file, written.get(step.file)!);
    else if (step.kind !== "sync folder") pending.push(step);
    else for (const change of pending.splice(0)) apply(sure, change);
    if (index < before.length) continue;
    if (pending.length > mostAtOnce) throw new Error(`${pending.length} changes of names are not durable`);
    for (let chosen = 0; chosen < 2 ** pending.length; chosen++) {
      const names = new Map(sure);
      pending.forEach((change, bit) => {
        if ((chosen & (2 ** bit)) !== 0) apply(names, change);
      });
      for (const contentsOf of [
        // Nothing that was not synced, only that the file has grown, or all of it.
        (file: number) => durable.get(file) ?? Buffer.alloc(0),
        (file: number) => grown(durable.get(file), written.get(file)?.length ?? 0),
        (file: number) => written.get(file) ?? Buffer.alloc(0),
      ]) {
        const state = new Map([...names].map(([name, file]) => [name, contentsOf(file)]));
        const key = [...state]
          .sort(([a], [b]) => (a < b ? -1 : 1))
          .map(([name, bytes]) => `${name}:${bytes.toString("latin1")}`)
          .join("\n");
        if (seen.has(key)) continue;
        seen.add(key);
        yield state;
      }
    }
  }
}

function apply(names: Map<string, number>, change: Naming): void {
  if (change.kind === "rename") names.delete(change.from);
  if (change.kind === "unname") names.delete(change.name);
  else names.set(change.name, change.file);
}

function grown(bytes: Buffer | undefined, length: number): Buffer {
  const whole = Buffer.alloc(Math.max(length, bytes?.length ?? 0));
  bytes?.copy(whole);
  return whole;
}
