/**
 * What the kits clear away, for test/kit/hooks.ts to call. A hook of a kit's own would be one of the first file alone, where
 * a process runs several: it loads a kit once.
 */
type CleanUp = () => unknown;

const afterTests: CleanUp[] = [];
const afterFiles: CleanUp[] = [];

/** Called after each test of each file. */
export function afterEachTest(cleanUp: CleanUp): void {
  afterTests.unshift(cleanUp);
}

/** Called after the last test of each file. */
export function afterEachFile(cleanUp: CleanUp): void {
  afterFiles.unshift(cleanUp);
}

/** The last first: a kit is loaded after what it builds on. */
export const endTest = () => callAll(afterTests);
export const endFile = () => callAll(afterFiles);

/** One that fails keeps none of the others: what they leave would stand in the way of the next file. */
async function callAll(cleanUps: readonly CleanUp[]): Promise<void> {
  const errors: unknown[] = [];
  for (const cleanUp of cleanUps) {
    try {
      await cleanUp();
    } catch (error) {
      errors.push(error);
    }
  }
  if (errors.length > 0)
    throw errors.length === 1 ? errors[0] : new AggregateError(errors, "not all was cleared away");
}
