/** ArrayBuffers over memory that JavaScript does not own: what the native library does as an addon of Node.js. */
import { TensorBusError } from "../errors.ts";
import { libraryPath } from "./library.ts";
import { nativeLibrary } from "./native.ts";

type View = (address: bigint, bytes: number, gone: () => void) => ArrayBuffer;

let view: View | undefined;

/** The most bytes of one view: Node 20 ends when one beyond 4 GiB is made. */
export const maxViewBytes = 2 ** 30;

/**
 * An ArrayBuffer over memory that it does not own; `RangeError` beyond `maxViewBytes`. `gone` is called once nothing can reach
 * the memory through it any more: it was collected, or whatever thread it was transferred to has let go of it.
 */
export function viewOf(address: bigint, bytes: number, gone: () => void): ArrayBuffer {
  if (bytes > maxViewBytes) {
    throw new RangeError(`a view has at most ${maxViewBytes} bytes, not ${bytes}: take several`);
  }
  view ??= loadAddon();
  return view(address, bytes, gone);
}

function loadAddon(): View {
  nativeLibrary();
  const addon: { exports: unknown } = { exports: {} };
  try {
    process.dlopen(addon, libraryPath());
  } catch (cause) {
    const message = "the native library does not load as an addon of this Node.js";
    throw new TensorBusError("TB_LIBRARY", message, { cause });
  }
  return addon.exports as View;
}
