/**
 * Failures. A failure writes its code and up to four values and traps; the host reads the record, throws away
 * the instance and raises a TensorBusError with names. The numbers are those of `src/errors.ts`.
 */
export const TB_PLACEMENT: i32 = 102;
export const TB_STRIDED_SHARD: i32 = 105;
export const TB_DTYPE: i32 = 107;
export const TB_PLAN_TOO_LARGE: i32 = 108;
export const TB_STRIDES: i32 = 111;
/** No code of the table: a fault of the planner itself. */
const INTERNAL: i32 = -1;

let code: i32 = 0;
const values: usize = memory.data(32, 8);

export function fail(number: i32, a: i64 = 0, b: i64 = 0, c: i64 = 0, d: i64 = 0): void {
  code = number;
  store<i64>(values, a);
  store<i64>(values, b, 8);
  store<i64>(values, c, 16);
  store<i64>(values, d, 24);
  unreachable();
}

/** What AssemblyScript calls in place of an import: never a pointer to a message, always the place. */
export function onAbort(message: string | null, file: string | null, line: u32, column: u32): void {
  fail(INTERNAL, line, column);
}

export function errorCode(): i32 {
  return code;
}

export function errorValue(index: i32): i64 {
  return load<i64>(values + ((<usize>index) << 3));
}
