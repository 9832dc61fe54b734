import { readFileSync } from "node:fs";
import { join } from "node:path";
import binaryen from "binaryen";
import { decide } from "../../../src/plan/input/decisions.ts";
import { normalize } from "../../../src/plan/input/normalize.ts";
import type { PlanInput } from "../../../src/plan/input/types.ts";
import { makeImage } from "../../../src/plan/planner/image.ts";

/** What of the planner's exports is counted. */
interface Exports {
  readonly memory: { readonly buffer: ArrayBuffer };
  begin(bytes: number): number;
  reserve(bytes: number): number;
  open(at: number): void;
  findChannels(): void;
  tableAt(): number;
  tableLength(): number;
  useTable(at: number): void;
  gather(rank: number, limit: bigint, dependencies: number): bigint;
  program(rank: number, digest: number, entries: number, entryCount: number): number;
  sum(): number;
  sumOfKind(stage: number, kind: number, what: number): bigint;
}

interface Engine {
  readonly Module: new (bytes: Uint8Array) => object;
  readonly Instance: new (module: object, imports: object) => { readonly exports: unknown };
}
const engine = (globalThis as unknown as { readonly WebAssembly: Engine }).WebAssembly;

/** What is called at each step: in WebAssembly, since a call of the host takes ten times as long. */
interface Counter {
  readonly count: (step: number) => void;
  readonly counted: { readonly value: bigint };
}

function makeCounter(): Counter {
  const module = new binaryen.Module();
  module.addGlobal("counted", binaryen.i64, true, module.i64.const(0n));
  const next = module.i64.add(module.global.get("counted", binaryen.i64), module.i64.const(1n));
  module.addFunction("count", binaryen.i32, binaryen.none, [], module.global.set("counted", next));
  module.addFunctionExport("count", "count");
  module.addGlobalExport("counted", "counted");
  module.setFeatures(binaryen.Features.MutableGlobals);
  const instance = new engine.Instance(new engine.Module(module.emitBinary()), {});
  module.dispose();
  return instance.exports as Counter;
}

const file = join(import.meta.dirname, "../../../build/planner.wasm");

/** The planner with a call of the counter at the beginning of each function and each turn of a loop. */
function countedModule(): object {
  const module = binaryen.readBinary(readFileSync(file));
  module.runPasses(["log-execution"]);
  const bytes = module.emitBinary();
  module.dispose();
  return new engine.Module(bytes);
}

let counted: object | undefined;

/** Takes the image of a plan in. */
function hold(exports: Exports, image: Uint8Array): void {
  const at = exports.begin(image.length);
  new Uint8Array(exports.memory.buffer, at, image.length).set(image);
  exports.open(at);
}

/** How many steps (calls of functions and turns of loops) questions about a plan take, and how large their answers are. */
export class CountedPlan {
  readonly #exports: Exports;
  readonly #counter: Counter;
  readonly #image: Uint8Array;
  readonly world: number;

  constructor(input: PlanInput) {
    counted ??= countedModule();
    this.#counter = makeCounter();
    const instance = new engine.Instance(counted, { env: { log_execution: this.#counter.count } });
    this.#exports = instance.exports as Exports;
    const normal = normalize(input);
    this.#image = makeImage(normal, decide(normal)).bytes;
    this.world = normal.world;
    hold(this.#exports, this.#image);
  }

  /** Finds the channels of the world, of which every other question knows then. */
  channels(): { readonly steps: number; readonly channels: number } {
    const steps = this.#count(() => this.#exports.findChannels());
    const table = new Uint32Array(this.#exports.memory.buffer, this.#exports.tableAt(), 3);
    return { steps, channels: table.reduce((sum, stage) => sum + stage, 0) };
  }

  /** The same uncounted, in a fraction of the time: for questions about one rank of a large world. */
  findChannels(): this {
    const instance = new engine.Instance(new engine.Module(readFileSync(file)), {});
    const plain = instance.exports as Exports;
    hold(plain, this.#image);
    plain.findChannels();
    const bytes = plain.tableLength() * 4;
    const at = this.#exports.reserve(bytes);
    const table = new Uint8Array(plain.memory.buffer, plain.tableAt(), bytes);
    new Uint8Array(this.#exports.memory.buffer, at, bytes).set(table);
    this.#exports.useTable(at);
    return this;
  }

  /** One rank's chunks. */
  chunks(rank: number): { readonly steps: number; readonly chunks: number } {
    let chunks = 0n;
    const steps = this.#count(() => {
      chunks = this.#exports.gather(rank, 2n ** 40n, 0);
    });
    return { steps, chunks: Number(chunks) };
  }

  program(rank: number): number {
    const at = this.#exports.reserve(32);
    return this.#count(() => this.#exports.program(rank, at, at + 32, 0));
  }

  /** The sums over all chunks, and how many these are. */
  stats(): { readonly steps: number; readonly chunks: number } {
    const steps = this.#count(() => this.#exports.sum());
    let chunks = 0;
    for (const stage of [0, 1, 2]) {
      for (const kind of [0, 1, 2]) chunks += Number(this.#exports.sumOfKind(stage, kind, 0));
    }
    return { steps, chunks };
  }

  #count(run: () => void): number {
    const before = this.#counter.counted.value;
    run();
    return Number(this.#counter.counted.value - before);
  }
}
