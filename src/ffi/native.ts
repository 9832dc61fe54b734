/**
 * Functions of `native/include/tensorbus.h`, declared as data and called with types. The library is loaded at the first
 * call of any of them.
 *
 * ```ts
 * const sessions = declareNative({
 *   tb_session_port: ["u64", "out u32"],
 *   tb_session_close: ["u64"],
 * });
 * const port = sessions.tb_session_port(session);   // throws TensorBusError
 * ```
 */
import type { LibraryHandle } from "koffi";
import { TensorBusError } from "../errors.ts";
import { errorBytes, readError } from "./error.ts";
import { openLibrary } from "./library.ts";

/** What is passed in. A `pointer` is an address, or a view whose first byte is meant; null if C may take NULL. */
interface InputTypes {
  u32: number;
  i32: number;
  u64: bigint;
  string: string;
  pointer: bigint | ArrayBufferView | null;
}

/** What C gives through a pointer of its own parameter; the caller receives it as a result. */
interface OutputTypes {
  "out u32": number;
  "out i32": number;
  "out u64": bigint;
}

interface PlainTypes {
  u32: number;
  string: string;
}

type Parameter = keyof InputTypes | keyof OutputTypes;

/** A function that ends with `tb_error *err` and returns a code. The parameter `err` is not listed. */
type Fallible = readonly Parameter[];
/** A function that cannot fail. */
interface Plain {
  readonly returns: keyof PlainTypes;
  readonly parameters: readonly (keyof InputTypes)[];
}
type Declarations = Readonly<Record<string, Fallible | Plain>>;

type Inputs<P extends readonly Parameter[]> = P extends readonly [
  infer Head,
  ...infer Tail extends readonly Parameter[],
]
  ? Head extends keyof InputTypes
    ? [InputTypes[Head], ...Inputs<Tail>]
    : Inputs<Tail>
  : [];
type Outputs<P extends readonly Parameter[]> = P extends readonly [
  infer Head,
  ...infer Tail extends readonly Parameter[],
]
  ? Head extends keyof OutputTypes
    ? [OutputTypes[Head], ...Outputs<Tail>]
    : Outputs<Tail>
  : [];
/** Nothing, the one output, or a tuple of them. */
type Result<O extends readonly unknown[]> = O extends [] ? undefined : O extends [infer Only] ? Only : O;

type NativeFunctions<D extends Declarations> = {
  readonly [Name in keyof D]: D[Name] extends Plain
    ? (...inputs: Inputs<D[Name]["parameters"]>) => PlainTypes[D[Name]["returns"]]
    : D[Name] extends Fallible
      ? (...inputs: Inputs<D[Name]>) => Result<Outputs<D[Name]>>
      : never;
};

const cTypes: Readonly<Record<Parameter, string>> = {
  u32: "uint32_t",
  i32: "int32_t",
  u64: "uint64_t",
  string: "const char *",
  pointer: "void *",
  "out u32": "void *",
  "out i32": "void *",
  "out u64": "void *",
};

type Slot = Uint32Array | Int32Array | BigUint64Array;
const slots: Readonly<Record<keyof OutputTypes, () => Slot>> = {
  "out u32": () => new Uint32Array(1),
  "out i32": () => new Int32Array(1),
  "out u64": () => new BigUint64Array(1),
};

let library: LibraryHandle | undefined;

/** The library of this process, opened at the first call. `TB_NATIVE_MISSING`, `TB_LIBRARY`. */
export function nativeLibrary(): LibraryHandle {
  library ??= openLibrary();
  return library;
}

/**
 * Types for functions of the native library; nothing is loaded until one of them is called. A function that fails throws
 * a `TensorBusError` with the code that C returned. `open` is for tests.
 */
export function declareNative<const D extends Declarations>(
  declarations: D,
  open: () => LibraryHandle = nativeLibrary,
): NativeFunctions<D> {
  const functions: Record<string, (...inputs: unknown[]) => unknown> = {};
  for (const [name, declaration] of Object.entries(declarations)) {
    functions[name] = (...inputs) => {
      const bound =
        "returns" in declaration
          ? bindPlain(open(), name, declaration)
          : bindFallible(open(), name, declaration);
      functions[name] = bound;
      return bound(...inputs);
    };
  }
  return functions as unknown as NativeFunctions<D>;
}

/** `TB_LIBRARY` if the library has no such function. */
function find(from: LibraryHandle, name: string, result: string, parameters: string[]) {
  try {
    return from.func(name, result, parameters) as (...inputs: unknown[]) => unknown;
  } catch (cause) {
    throw new TensorBusError("TB_LIBRARY", `the native library has no function ${name}`, { cause });
  }
}

function bindPlain(from: LibraryHandle, name: string, { returns, parameters }: Plain) {
  return find(
    from,
    name,
    cTypes[returns],
    parameters.map((parameter) => cTypes[parameter]),
  );
}

function bindFallible(from: LibraryHandle, name: string, parameters: Fallible) {
  const call = find(from, name, "int32_t", [...parameters.map((parameter) => cTypes[parameter]), "void *"]);
  // Calls are synchronous and C never calls back: one set of outputs and one error serve all calls of a function.
  const error = new Uint8Array(errorBytes);
  const outputs: Slot[] = [];
  const takesInput: number[] = [];
  const given: unknown[] = parameters.map((parameter, at) => {
    if (!(parameter in slots)) {
      takesInput.push(at);
      return undefined;
    }
    const slot = slots[parameter as keyof OutputTypes]();
    outputs.push(slot);
    return slot;
  });
  given.push(error);
  return (...inputs: unknown[]): unknown => {
    for (let i = 0; i < takesInput.length; i++) given[takesInput[i]!] = inputs[i];
    const status = call(...given) as number;
    // What a caller has handed in is not kept beyond the call.
    for (let i = 0; i < takesInput.length; i++) given[takesInput[i]!] = undefined;
    if (status !== 0) {
      throw readError(error) ?? new TensorBusError("TB_SYSTEM", `${name} returned ${status} and no error`);
    }
    return outputs.length > 1 ? outputs.map((slot) => slot[0]) : outputs[0]?.[0];
  };
}
