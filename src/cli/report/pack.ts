/** Columns of numbers, and bytes, by name. */
export type Columns = Readonly<Record<string, Column>>;
type Column = Uint8Array | Uint32Array | Float64Array;

/** What is packed: plain values for JSON, and columns. */
export interface Parts {
  readonly values: unknown;
  readonly columns: Columns;
}

interface ColumnHead {
  readonly name: string;
  readonly type: keyof typeof types;
  readonly length: number;
}

const types = { u8: Uint8Array, u32: Uint32Array, f64: Float64Array } as const;

/**
 * Values and columns as bytes: the length of the JSON text, the text, then each column with the first bytes of all its
 * numbers, the second ones, and so on: neighbours are alike, so that it is compressed well. Little-endian.
 */
export function pack({ values, columns }: Parts): Uint8Array<ArrayBuffer> {
  const heads = Object.entries(columns).map(
    ([name, column]): ColumnHead => ({ name, type: typeOf(column), length: column.length }),
  );
  const text = new TextEncoder().encode(JSON.stringify({ values, columns: heads }));
  const sizes = Object.values(columns).map(({ byteLength }) => byteLength);
  const bytes = new Uint8Array(4 + text.length + sizes.reduce((sum, size) => sum + size, 0));
  new DataView(bytes.buffer).setUint32(0, text.length, true);
  bytes.set(text, 4);
  let at = 4 + text.length;
  for (const column of Object.values(columns)) {
    const raw = new Uint8Array(column.buffer, column.byteOffset, column.byteLength);
    const width = column.BYTES_PER_ELEMENT;
    for (let plane = 0; plane < width; plane++) {
      for (let from = plane; from < raw.length; from += width) bytes[at++] = raw[from]!;
    }
  }
  return bytes;
}

/** The inverse of `pack`. */
export function unpack(bytes: Uint8Array): Parts {
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const text = new TextDecoder().decode(bytes.subarray(4, 4 + length));
  const { values, columns } = JSON.parse(text) as { values: unknown; columns: readonly ColumnHead[] };
  let at = 4 + length;
  const entries = columns.map(({ name, type, length: count }) => {
    const column = new types[type](count);
    const raw = new Uint8Array(column.buffer);
    const width = column.BYTES_PER_ELEMENT;
    for (let plane = 0; plane < width; plane++) {
      for (let to = plane; to < raw.length; to += width) raw[to] = bytes[at++]!;
    }
    return [name, column] as const;
  });
  return { values, columns: Object.fromEntries(entries) };
}

function typeOf(column: Column): ColumnHead["type"] {
  if (column instanceof Float64Array) return "f64";
  return column instanceof Uint32Array ? "u32" : "u8";
}
