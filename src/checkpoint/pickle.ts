/**
 * Reads pickles as data: the protocols 2 to 5 as far as torch's checkpoints use them, and of globals only those of a closed
 * table. Nothing is imported, called or run: what a pickle would build becomes a record of what it names. Every other global and
 * opcode is refused by its name.
 */
import { TensorBusError } from "../errors.ts";

/** A global that a pickle names: `torch.Size`. */
export class PickledGlobal {
  readonly name: string;

  constructor(name: string) {
    this.name = name;
  }
}

/** What a global was called with, or the object that was made of it; `state` is what was set on it. */
export class PickledObject {
  readonly global: string;
  readonly args: readonly PickledValue[];
  state: PickledValue | undefined;

  constructor(global: string, args: readonly PickledValue[]) {
    this.global = global;
    this.args = args;
  }
}

/** What stands for data outside of the pickle. */
export class PickledReference {
  readonly id: PickledValue;

  constructor(id: PickledValue) {
    this.id = id;
  }
}

export type PickledValue =
  | null
  | boolean
  | number
  | bigint
  | string
  | Uint8Array
  | PickledValue[]
  | Map<PickledValue, PickledValue>
  | PickledGlobal
  | PickledObject
  | PickledReference;

/** A mark on the stack. */
const mark = Symbol("mark");
type Slot = PickledValue | typeof mark;

/** The most values that wait on the stack: a dictionary comes in batches of 1,000 items. */
const maxStack = 100_000;

/** The value of a pickle. `TB_CHECKPOINT` names what it is that is refused, and where. `file` is for messages. */
export function readPickle(bytes: Uint8Array, globals: ReadonlySet<string>, file: string): PickledValue {
  return new Reader(bytes, globals, file).read();
}

class Reader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #globals: ReadonlySet<string>;
  readonly #file: string;
  readonly #stack: Slot[] = [];
  readonly #memo: PickledValue[] = [];
  #at = 0;

  constructor(bytes: Uint8Array, globals: ReadonlySet<string>, file: string) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#globals = globals;
    this.#file = file;
  }

  read(): PickledValue {
    for (;;) {
      const opcode = this.#u8();
      if (opcode === 0x2e) return this.#pop(); // STOP
      const value = this.#made(opcode);
      if (value === undefined) this.#change(opcode);
      else this.#stack.push(value);
      if (this.#stack.length > maxStack) throw this.#refuse(`more than ${maxStack} values wait on its stack`);
    }
  }

  /** The value that an opcode makes; `undefined` for one that changes what there is. */
  #made(opcode: number): PickledValue | undefined {
    switch (opcode) {
      case 0x4e: // NONE
        return null;
      case 0x88: // NEWTRUE
        return true;
      case 0x89: // NEWFALSE
        return false;
      case 0x4b: // BININT1
        return this.#u8();
      case 0x4d: // BININT2
        return this.#view.getUint16(this.#skip(2), true);
      case 0x4a: // BININT
        return this.#view.getInt32(this.#skip(4), true);
      case 0x8a: // LONG1
        return this.#long(this.#u8());
      case 0x47: // BINFLOAT
        return this.#view.getFloat64(this.#skip(8), false);
      case 0x8c: // SHORT_BINUNICODE
        return this.#text(this.#u8());
      case 0x58: // BINUNICODE
        return this.#text(this.#u32());
      case 0x43: // SHORT_BINBYTES
        return this.#take(this.#u8());
      case 0x42: // BINBYTES
        return this.#take(this.#u32());
      case 0x29: // EMPTY_TUPLE
      case 0x5d: // EMPTY_LIST
        return [];
      case 0x7d: // EMPTY_DICT
        return new Map();
      case 0x85: // TUPLE1
      case 0x86: // TUPLE2
      case 0x87: // TUPLE3
        return this.#popMany(opcode - 0x84);
      case 0x74: // TUPLE
        return this.#popToMark();
      case 0x63: // GLOBAL
        return this.#global(this.#line(), this.#line());
      case 0x93: // STACK_GLOBAL
        return this.#global(...(this.#popMany(2) as [PickledValue, PickledValue]));
      case 0x52: // REDUCE
      case 0x81: // NEWOBJ
        return this.#object(...(this.#popMany(2) as [PickledValue, PickledValue]));
      case 0x51: // BINPERSID
        return new PickledReference(this.#pop());
      case 0x68: // BINGET
        return this.#get(this.#u8());
      case 0x6a: // LONG_BINGET
        return this.#get(this.#u32());
      default:
        return undefined;
    }
  }

  #change(opcode: number): void {
    switch (opcode) {
      case 0x80: // PROTO
        this.#requireProtocol(this.#u8());
        break;
      case 0x95: // FRAME
        this.#skip(8);
        break;
      case 0x28: // MARK
        this.#stack.push(mark);
        break;
      case 0x61: // APPEND
        this.#append([this.#pop()]);
        break;
      case 0x65: // APPENDS
        this.#append(this.#popToMark());
        break;
      case 0x73: // SETITEM
        this.#setItems(this.#popMany(2));
        break;
      case 0x75: // SETITEMS
        this.#setItems(this.#popToMark());
        break;
      case 0x62: // BUILD
        this.#setState(this.#pop());
        break;
      case 0x94: // MEMOIZE
        this.#memo.push(this.#top());
        break;
      case 0x71: // BINPUT
        this.#put(this.#u8());
        break;
      case 0x72: // LONG_BINPUT
        this.#put(this.#u32());
        break;
      default:
        throw this.#refuse(`the opcode 0x${opcode.toString(16)} is not one of torch's checkpoints`);
    }
  }

  #requireProtocol(protocol: number): void {
    if (protocol < 2 || protocol > 5) throw this.#refuse(`it has protocol ${protocol}`);
  }

  #append(values: readonly PickledValue[]): void {
    const list = this.#top();
    if (!Array.isArray(list)) throw this.#refuse("it appends to something that is not a list");
    for (const value of values) list.push(value);
  }

  #setItems(values: readonly PickledValue[]): void {
    const map = this.#top();
    if (!(map instanceof Map)) throw this.#refuse("it sets an item of something that is not a dictionary");
    if (values.length % 2 !== 0) throw this.#refuse("a key of it has no value");
    for (let index = 0; index < values.length; index += 2) map.set(values[index]!, values[index + 1]!);
  }

  #setState(state: PickledValue): void {
    const object = this.#top();
    if (!(object instanceof PickledObject))
      throw this.#refuse("it sets the state of something that is not an object");
    object.state = state;
  }

  #object(global: PickledValue, args: PickledValue): PickledObject {
    if (global instanceof PickledGlobal && Array.isArray(args)) return new PickledObject(global.name, args);
    throw this.#refuse("it calls something that is not a global");
  }

  #global(module: PickledValue, name: PickledValue): PickledGlobal {
    // No text is made of anything else: of a list that holds itself many times it would not end.
    if (typeof module !== "string" || typeof name !== "string")
      throw this.#refuse("it names a global by something that is not a text");
    const path = `${module}.${name}`;
    if (this.#globals.has(path)) return new PickledGlobal(path);
    throw this.#refuse(
      `it names ${JSON.stringify(path)}, which is not in the table of what checkpoints hold`,
    );
  }

  #put(index: number): void {
    // As many as there are bytes at the most: an index beyond lies.
    if (index > this.#bytes.length) throw this.#refuse(`it remembers a value as number ${index}`);
    this.#memo[index] = this.#top();
  }

  #get(index: number): PickledValue {
    const value = this.#memo[index];
    if (value === undefined) throw this.#refuse(`it recalls value number ${index}, which it has not`);
    return value;
  }

  #pop(): PickledValue {
    const value = this.#stack.pop();
    if (value === undefined || value === mark) throw this.#refuse("it takes a value that is not there");
    return value;
  }

  #top(): PickledValue {
    const value = this.#stack.at(-1);
    if (value === undefined || value === mark) throw this.#refuse("it uses a value that is not there");
    return value;
  }

  #popMany(count: number): PickledValue[] {
    const values = Array.from({ length: count }, () => this.#pop());
    return values.reverse();
  }

  #popToMark(): PickledValue[] {
    const at = this.#stack.lastIndexOf(mark);
    if (at < 0) throw this.#refuse("it ends a list that it has not begun");
    return this.#stack.splice(at).slice(1) as PickledValue[];
  }

  #u8(): number {
    return this.#bytes[this.#skip(1)]!;
  }

  #u32(): number {
    return this.#view.getUint32(this.#skip(4), true);
  }

  /** Two's complement, little-endian. */
  #long(length: number): number | bigint {
    const bytes = this.#take(length);
    let value = 0n;
    for (let index = bytes.length - 1; index >= 0; index--) value = (value << 8n) | BigInt(bytes[index]!);
    if (bytes.length > 0 && bytes.at(-1)! >= 0x80) value -= 1n << BigInt(8 * bytes.length);
    const exact = Number(value);
    return Number.isSafeInteger(exact) ? exact : value;
  }

  #text(length: number): string {
    try {
      return new TextDecoder("utf-8", { fatal: true }).decode(this.#take(length));
    } catch (cause) {
      if (cause instanceof TensorBusError) throw cause;
      throw this.#refuse("a text in it is not UTF-8");
    }
  }

  #line(): string {
    const end = this.#bytes.indexOf(0x0a, this.#at);
    if (end < 0) throw this.#refuse("it ends inside of a name");
    const text = this.#text(end - this.#at);
    this.#at = end + 1;
    return text;
  }

  #take(length: number): Uint8Array {
    const at = this.#skip(length);
    return this.#bytes.subarray(at, at + length);
  }

  /** Says where these bytes begin. */
  #skip(length: number): number {
    const at = this.#at;
    if (at + length > this.#bytes.length) throw this.#refuse("it ends inside of a value");
    this.#at = at + length;
    return at;
  }

  #refuse(what: string): TensorBusError {
    return new TensorBusError(
      "TB_CHECKPOINT",
      `${this.#file}: refused a pickle: ${what} (byte ${this.#at})`,
      {
        details: { file: this.#file, at: this.#at },
      },
    );
  }
}
