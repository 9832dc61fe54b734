import { readFile } from "node:fs/promises";
import { TensorBusError } from "../errors.ts";

const reasons: Readonly<Record<string, string>> = {
  ENOENT: "no such file or folder",
  EACCES: "permission denied",
  EPERM: "permission denied",
  EISDIR: "it is a folder",
  ENOTDIR: "a part of the path is no folder",
  EMFILE: "too many open files (see ulimit -n)",
  EFBIG: "the file would be larger than the file system or the limits allow",
  EROFS: "the file system is read-only",
};

/** A failure of the file system as a `TensorBusError`: `TB_NO_SPACE` where the disk or a quota is full, else `TB_FILE`. */
export function fileError(cause: unknown, action: string, path: string): TensorBusError {
  const code = systemCode(cause);
  if (code === "ENOSPC" || code === "EDQUOT") {
    return new TensorBusError("TB_NO_SPACE", `can not ${action} ${path}: the disk or the quota is full`, {
      details: { path, errno: code },
      cause,
    });
  }
  const reason = (code === undefined ? undefined : reasons[code]) ?? code ?? String(cause);
  return new TensorBusError("TB_FILE", `can not ${action} ${path}: ${reason}`, {
    details: { path, errno: code },
    cause,
  });
}

/** A text file as text. `TB_FILE` where it can not be read or is longer than `maxBytes`. */
export async function readTextFile(path: string, maxBytes: number): Promise<string> {
  let bytes: Buffer;
  try {
    bytes = await readFile(path);
  } catch (error) {
    throw fileError(error, "read", path);
  }
  if (bytes.length > maxBytes) {
    throw new TensorBusError("TB_FILE", `${path} has ${bytes.length} bytes; at most ${maxBytes} are read`, {
      details: { path, bytes: bytes.length, maxBytes },
    });
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new TensorBusError("TB_FILE", `${path} is not UTF-8 text`, { details: { path }, cause });
  }
}

function systemCode(error: unknown): string | undefined {
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  return typeof code === "string" ? code : undefined;
}
