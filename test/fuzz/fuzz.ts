/** Runs a target on its corpus, and on changes of it, for some time; says how many, and the input that failed. */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Mutator } from "./kit/mutate.ts";
import { targets } from "./targets.ts";

interface FuzzOptions {
  /** Ends after so many seconds, */
  readonly seconds?: number;
  /** or after so many inputs, whichever is first. */
  readonly inputs?: number;
  readonly seed?: number;
}

export const targetNames: readonly string[] = Object.keys(targets);
/** Where inputs that were found to be telling are kept. */
const corpusFolder = join(import.meta.dirname, "corpus");

/** How many inputs were tried. Throws what the first one that failed threw, with the file that holds it. */
export async function fuzz(
  name: string,
  { seconds = 3600, inputs = 1e9, seed = 1 }: FuzzOptions,
): Promise<number> {
  const target = targets[name];
  if (target === undefined) throw new Error(`no target ${name}: there are ${targetNames.join(", ")}`);
  const until = performance.now() + seconds * 1000;
  let tried = 0;
  try {
    const corpus = [...(await target.seeds()), ...kept(name)];
    const mutator = new Mutator(seed);
    for (; tried < inputs && (tried < corpus.length || performance.now() < until); tried += 1) {
      const input = tried < corpus.length ? Buffer.from(corpus[tried]!) : mutator.next(corpus);
      try {
        await target.run(Buffer.from(input));
      } catch (error) {
        const path = join(
          mkdirAlways(join(tmpdir(), "tensorbus-fuzz-found")),
          `${name}-${seed}-${tried}.bin`,
        );
        writeFileSync(path, input);
        throw new Error(`${name}: input ${tried} of seed ${seed} (${path}): ${(error as Error).message}`, {
          cause: error,
        });
      }
    }
  } finally {
    await target.close?.();
  }
  return tried;
}

function kept(name: string): Buffer[] {
  const folder = join(corpusFolder, name);
  if (!existsSync(folder)) return [];
  return readdirSync(folder)
    .sort()
    .map((file) => readFileSync(join(folder, file)));
}

function mkdirAlways(path: string): string {
  mkdirSync(path, { recursive: true });
  return path;
}
