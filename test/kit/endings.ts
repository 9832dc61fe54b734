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
export async function endTest(): Promise<void> {
  for (const cleanUp of afterTests) await cleanUp();
}

export async function endFile(): Promise<void> {
  for (const cleanUp of afterFiles) await cleanUp();
}
