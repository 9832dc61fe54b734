/**
 * Opens a folder of the bus while the kernel has no locks for one of the descriptors that are free: for the first, the
 * second and so on. Tells for each how that ended, how many descriptors were left open, and how the next opening ended.
 */
import { closeSync, openSync, readdirSync } from "node:fs";
import { constants } from "node:os";
import koffi from "koffi";
import { openEventPort } from "../../../src/bus/process/event-port.ts";
import { openEnvironment } from "../../../src/bus/queue/environment.ts";
import { addressOf } from "../../../src/ffi/koffi.ts";

const { path, commands, upTo } = JSON.parse(process.argv[2]!) as LocklessOptions;

export interface LocklessTry {
  readonly code: string;
  readonly message: string;
  /** Descriptors that it has not closed. */
  readonly left: number;
  /** How the next opening ended, in the same process. */
  readonly later: string;
}

interface LocklessOptions {
  readonly path: string;
  /** The commands of `fcntl` that are refused. */
  readonly commands: readonly number[];
  /** So many descriptors in turn. */
  readonly upTo: number;
}

const libc = koffi.load(null);
const prctl = libc.func("int prctl(int what, uint64_t a, uint64_t b, uint64_t c, uint64_t d)");
const setNoNewPrivileges = 38;
const setSeccomp = 22;
const filterMode = 2n;
const fcntlNumber = process.arch === "arm64" ? 25 : 72;

/** That descriptor's locks are refused for as long as the process lives: a filter of system calls answers. */
function refuseLocks(fd: number): void {
  const [load, isEqual, answer] = [0x20, 0x15, 0x06];
  const [allow, fail] = [0x7fff_0000, 0x0005_0000 | constants.errno.ENOLCK];
  // Offsets in `struct seccomp_data`: the call's number, then its parameters.
  const filter: readonly (readonly [code: number, ifSo: number, ifNot: number, value: number])[] = [
    [load, 0, 0, 0],
    [isEqual, 1, 0, fcntlNumber],
    [answer, 0, 0, allow],
    [load, 0, 0, 16],
    [isEqual, 1, 0, fd],
    [answer, 0, 0, allow],
    [load, 0, 0, 24],
    ...commands.flatMap((command) => [[isEqual, 0, 1, command] as const, [answer, 0, 0, fail] as const]),
    [answer, 0, 0, allow],
  ];
  const code = new DataView(new ArrayBuffer(filter.length * 8));
  for (const [i, [what, ifSo, ifNot, value]] of filter.entries()) {
    code.setUint16(8 * i, what, true);
    code.setUint8(8 * i + 2, ifSo);
    code.setUint8(8 * i + 3, ifNot);
    code.setUint32(8 * i + 4, value, true);
  }
  const program = new DataView(new ArrayBuffer(16));
  program.setUint16(0, filter.length, true);
  program.setBigUint64(8, addressOf(code), true);
  const failed =
    prctl(setNoNewPrivileges, 1n, 0n, 0n, 0n) || prctl(setSeccomp, filterMode, addressOf(program), 0n, 0n);
  if (failed !== 0) throw new Error("the kernel takes no filter of system calls");
}

const openDescriptors = () => readdirSync("/proc/self/fd").length;

async function outcomeOf(): Promise<readonly [code: string, message: string]> {
  const port = openEventPort();
  try {
    const environment = await openEnvironment({ path, kind: "queue", port }, { timeoutMs: 5000 });
    await environment.write("a write", () => environment.root.put(Buffer.from([1]), Buffer.from([1])));
    await environment.close();
    return ["none", ""];
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    return [String(code), message];
  } finally {
    await port.close();
  }
}

// What is loaded late is loaded now.
await outcomeOf();
const port = openEventPort();
const tries: LocklessTry[] = [];
for (let i = 0; i < upTo; i++) {
  const next = Array.from({ length: i + 1 }, () => openSync("/dev/null", "r"));
  const refused = next.at(-1)!;
  for (const fd of next) closeSync(fd);
  refuseLocks(refused);
  const before = openDescriptors();
  const [code, message] = await outcomeOf();
  const left = openDescriptors() - before;
  // Nobody gets that number again.
  const plugs: number[] = [];
  for (let fd = -1; fd < refused; plugs.push(fd)) fd = openSync("/dev/null", "r");
  for (const fd of plugs) if (fd !== refused) closeSync(fd);
  const [later, why] = await outcomeOf();
  tries.push({ code, message, left, later: `${later}${why}` });
}
await port.close();
process.send?.(tries);
