import { errorCodeOf, TensorBusError } from "../errors.ts";
import { visible } from "../visible.ts";

/** `sizeof(tb_error)`: code, rank, errno and a reserved word, then the message. */
export const errorBytes = 512;
const messageOffset = 16;

/** `details.errno` of a GPU's failure after which no call of its driver succeeds in this process any more: ENOTRECOVERABLE. */
export const forGood = 131;

/**
 * The error in a `tb_error` that C filled, at that offset of the bytes; `undefined` if its code is 0. `details.rank`
 * is the rank where it began, `details.errno` the system's number, if there are any.
 */
export function readError(bytes: Uint8Array, offset = 0): TensorBusError | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset + offset, errorBytes);
  // The struct is in the byte order of the machine, and every machine that Node.js runs on Linux for is little-endian.
  const number = view.getInt32(0, true);
  if (number === 0) {
    return undefined;
  }
  const rank = view.getInt32(4, true);
  const errno = view.getInt32(8, true);
  const text = bytes.subarray(offset + messageOffset, offset + errorBytes);
  const end = text.indexOf(0);
  // It may be what a peer said.
  const message = visible(new TextDecoder().decode(end < 0 ? text : text.subarray(0, end)));
  const code = errorCodeOf(number);
  return new TensorBusError(code ?? "TB_SYSTEM", code ? message : `unknown code ${number}: ${message}`, {
    details: { ...(rank < 0 ? {} : { rank }), ...(errno === 0 ? {} : { errno }) },
  });
}
