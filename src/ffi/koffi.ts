import { createRequire } from "node:module";
import { TensorBusError } from "../errors.ts";

type Koffi = typeof import("koffi");

let loaded: Koffi | undefined;

/**
 * koffi, loaded when the first library is needed: what plans only must run where koffi has no binary. `TB_LIBRARY` if
 * it does not load.
 */
export function loadKoffi(): Koffi {
  loaded ??= configured();
  return loaded;
}

function configured(): Koffi {
  let koffi: Koffi;
  try {
    koffi = createRequire(import.meta.url)("koffi") as Koffi;
  } catch (cause) {
    throw new TensorBusError("TB_LIBRARY", "the package koffi cannot be loaded on this machine", { cause });
  }
  try {
    // koffi calls C on stacks of its own, too small for some libraries; they can be set only before any is loaded.
    koffi.config({ sync_stack_size: 16 << 20, async_stack_size: 16 << 20 });
  } catch {
    // The application loaded a library of its own before. Ours needs less than koffi's default.
  }
  return koffi;
}

/** The address of the first byte of a buffer or view. It stays while the buffer lives. */
export function addressOf(bytes: ArrayBufferView | ArrayBufferLike): bigint {
  // Asking for its buffer moves a small array out of the garbage-collected heap, where it would have no lasting place.
  const buffer = ArrayBuffer.isView(bytes) ? bytes.buffer : bytes;
  const offset = ArrayBuffer.isView(bytes) ? bytes.byteOffset : 0;
  return loadKoffi().address(new Uint8Array(buffer)) + BigInt(offset);
}
