import type { OutputFile } from "esbuild";

export function bundleCommandLine(
  folder: string,
): Promise<{ readonly outputFiles: readonly OutputFile[]; readonly inputs: readonly string[] }>;

export function writeCommandLine(folder: string): Promise<void>;
