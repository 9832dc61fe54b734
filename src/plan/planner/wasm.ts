import { type ErrorCode, errorCodeOf, TensorBusError } from "../../errors.ts";
import { plannerWasm } from "./wasm-module.ts";

/** What is used of the engine's own object, whose types come with a browser's library only. */
interface Engine {
  readonly Module: new (bytes: Uint8Array<ArrayBuffer>) => object;
  readonly Instance: new (module: object, imports: object) => { readonly exports: unknown };
}
const engine = (globalThis as unknown as { readonly WebAssembly: Engine }).WebAssembly;

/** What `assembly/index.ts` exports. Addresses are numbers. */
interface PlannerExports {
  readonly memory: { readonly buffer: ArrayBuffer };
  begin(bytes: number): number;
  reserve(bytes: number): number;
  open(at: number): void;
  keep(): void;
  resume(): void;
  findChannels(): void;
  tableAt(): number;
  tableLength(): number;
  useTable(at: number): void;
  stageWaves(stage: number): number;
  gather(rank: number, limit: bigint, dependencies: number): bigint;
  gatherTensor(tensor: number, limit: bigint): bigint;
  answer(which: number): number;
  program(rank: number, digest: number, entries: number, entryCount: number): number;
  programBytes(): number;
  count(tensor: number, what: number): bigint;
  countAll(): bigint;
  admitSum(): void;
  sum(): number;
  linksAt(): number;
  sumOfKind(stage: number, kind: number, what: number): bigint;
  sumOfBuckets(stage: number): bigint;
  errorCode(): number;
  errorValue(index: number): bigint;
}

/** A failure of the planner as it comes out of WebAssembly: a code and up to four values, not yet named. */
export class PlannerFault extends Error {
  readonly code: ErrorCode | undefined;
  readonly values: readonly bigint[];

  constructor(code: ErrorCode | undefined, values: readonly bigint[], cause: unknown) {
    super(`planner fault ${code} (${values.join(", ")})`, { cause });
    this.code = code;
    this.values = values;
  }
}

/**
 * Instances are kept for the next question, each with the plan that it was asked about, as long as their memory is no more
 * than this, all together, and they are no more than so many.
 */
const keepBytes = 64 * 2 ** 20;
const keepCount = 3;

let compiled: object | undefined;
const idle: Planner[] = [];

/** One instance of the planner. Its memory belongs to one question at a time: `borrowPlanner`, then `giveBack`. */
export class Planner {
  readonly #exports: PlannerExports;
  /** What it holds: the plan that was opened, and whether its channels are there. Not kept alive. */
  #holds: WeakRef<object> | undefined;
  hasChannels = false;
  /** Questions about that plan so far. */
  questions = 0;

  constructor() {
    compiled ??= new engine.Module(decodeBase64(plannerWasm));
    this.#exports = new engine.Instance(compiled, {}).exports as PlannerExports;
  }

  /** True if the plan that it holds was collected. */
  get isFree(): boolean {
    return this.#holds?.deref() === undefined;
  }

  holds(subject: object): boolean {
    return this.#holds?.deref() === subject;
  }

  nowHolds(subject: object): void {
    this.#holds = new WeakRef(subject);
    this.hasChannels = false;
    this.questions = 1;
  }

  /** Views must be taken after the last call that can grow the memory. */
  get buffer(): ArrayBuffer {
    return this.#exports.memory.buffer;
  }

  /** Calls the planner. @throws PlannerFault if it fails; the instance must not be given back then. */
  call<T>(question: (exports: PlannerExports) => T): T {
    try {
      return question(this.#exports);
    } catch (cause) {
      const number = this.#exports.errorCode();
      if (number === 0) throw cause;
      const values = [0, 1, 2, 3].map((index) => this.#exports.errorValue(index));
      throw new PlannerFault(errorCodeOf(number), values, cause);
    }
  }

  write(bytes: Uint8Array, at: number): void {
    new Uint8Array(this.buffer, at, bytes.length).set(bytes);
  }
}

/** A plan that was made and asked once: as a rule it is not asked again. */
const fewQuestions = 2;

/**
 * The instance that holds a plan already. Else the last one whose plan is gone or was hardly asked, since its memory is
 * there and warm; then a new one, as long as they are few, or the one that was not used for longest.
 */
export function borrowPlanner(subject: object): Planner {
  let at = idle.findIndex((planner) => planner.holds(subject));
  if (at < 0) at = idle.findLastIndex((planner) => planner.isFree || planner.questions <= fewQuestions);
  if (at < 0 && idle.length === keepCount) at = 0;
  return at < 0 ? new Planner() : idle.splice(at, 1)[0]!;
}

/**
 * Keeps an instance for the next question in place of those that were not used for longest; one that grew large is left to
 * the collector with all that it holds.
 */
export function giveBack(planner: Planner): void {
  const bytes = planner.buffer.byteLength;
  if (bytes > keepBytes) return;
  while (idle.length > 0 && (idle.length >= keepCount || idleBytes() + bytes > keepBytes)) idle.shift();
  idle.push(planner);
}

/** What idle instances hold; a test watches that it does not grow. */
export function idleBytes(): number {
  return idle.reduce((sum, { buffer }) => sum + buffer.byteLength, 0);
}

/** A fault that has no better name. */
export function plainError(fault: PlannerFault): TensorBusError {
  if (fault.code === undefined) {
    return new TensorBusError("TB_PLAN_INVALID", `the planner failed: ${fault.message}`, { cause: fault });
  }
  return new TensorBusError(fault.code, fault.message, { cause: fault, details: { values: fault.values } });
}

interface Decoder {
  from(text: string, encoding: "base64"): Uint8Array<ArrayBuffer>;
}

function decodeBase64(text: string): Uint8Array<ArrayBuffer> {
  // Node.js has a way that takes no time, and browsers none: commands start by it.
  const { Buffer: ofNode } = globalThis as { readonly Buffer?: Decoder };
  if (ofNode !== undefined) return ofNode.from(text, "base64");
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let index = 0; index < binary.length; index++) bytes[index] = binary.charCodeAt(index);
  return bytes;
}
