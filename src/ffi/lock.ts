/** A lock on a file or a folder, which Node.js has not: `flock` of the C library, which the kernel frees when the process ends. */
import { constants } from "node:os";
import { loadKoffi } from "./koffi.ts";

interface Libc {
  readonly flock: (fd: number, operation: number) => number;
  readonly errno: () => number;
}

const exclusive = 2;
const atOnce = 4;
/** `undefined` before it was looked for, `null` if there is none. */
let libc: Libc | null | undefined;

/** Locks it for as long as `fd` is open. `false` if another open file has the lock; also `true` if nothing can be locked. */
export function lockFile(fd: number): boolean {
  libc ??= loadLibc();
  return (
    libc === null || libc.flock(fd, exclusive | atOnce) === 0 || libc.errno() !== constants.errno.EWOULDBLOCK
  );
}

function loadLibc(): Libc | null {
  try {
    const koffi = loadKoffi();
    const flock = koffi.load(null).func("flock", "int", ["int", "int"]);
    return { flock: flock as unknown as Libc["flock"], errno: () => koffi.errno() };
  } catch {
    return null; // another system than Linux, or a processor that koffi has no binary for
  }
}
