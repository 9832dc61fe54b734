/**
 * Reserving the space of a file, which Node.js cannot do: `fallocate` of the C library that this process runs on, so
 * that it works without the native library of tensorbus.
 */
import { constants } from "node:os";
import { loadKoffi } from "./koffi.ts";

interface Libc {
  readonly fallocate: (fd: number, mode: number, offset: bigint, length: bigint) => number;
  readonly errno: () => number;
}

const { ENOSYS, EOPNOTSUPP, EINTR } = constants.errno;
/** `undefined` before it was looked for, `null` if there is none. */
let libc: Libc | null | undefined;

/**
 * Grows a file to `bytes` and reserves their space. `false` if the system or the file system cannot reserve; a
 * failure is an error with the system's `code`, like those of `node:fs`.
 */
export function reserveFile(fd: number, bytes: number): boolean {
  libc ??= loadLibc();
  if (libc === null) return false;
  while (bytes > 0 && libc.fallocate(fd, 0, 0n, BigInt(bytes)) !== 0) {
    const errno = libc.errno();
    if (errno === ENOSYS || errno === EOPNOTSUPP) return false;
    if (errno !== EINTR) throw systemError(errno);
  }
  return true;
}

function loadLibc(): Libc | null {
  try {
    const koffi = loadKoffi();
    const fallocate = koffi.load(null).func("fallocate", "int", ["int", "int", "int64_t", "int64_t"]);
    return { fallocate: fallocate as unknown as Libc["fallocate"], errno: () => koffi.errno() };
  } catch {
    return null; // another system than Linux, or a processor that koffi has no binary for
  }
}

function systemError(errno: number): NodeJS.ErrnoException {
  const code = Object.entries(constants.errno).find(([, value]) => value === errno)?.[0] ?? `errno ${errno}`;
  return Object.assign(new Error(`fallocate: ${code}`), { code, errno, syscall: "fallocate" });
}
