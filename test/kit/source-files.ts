/** The project's source files and what they import, read as text. Paths are from the root, with slashes. */
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize, sep } from "node:path";

export const root = join(import.meta.dirname, "../..");

export interface Import {
  /** A path from the root for a file of ours, the specifier for a package. */
  readonly target: string;
  readonly package: boolean;
  readonly typeOnly: boolean;
}

export interface SourceFile {
  readonly path: string;
  /** Without comments. */
  readonly code: string;
  readonly lines: number;
  readonly imports: readonly Import[];
}

export function filesOf(folder: string, extensions: readonly string[]): string[] {
  const found: string[] = [];
  for (const entry of readdirSync(join(root, folder), { withFileTypes: true })) {
    const path = `${folder}/${entry.name}`;
    if (["node_modules", "build", "dist", "golden"].includes(entry.name)) continue;
    if (entry.isDirectory()) found.push(...filesOf(path, extensions));
    else if (extensions.some((extension) => entry.name.endsWith(extension))) found.push(path);
  }
  return found;
}

/** Generated, not committed. */
export const generated = ["src/plan/planner/wasm-module.ts", "src/cli/report/page-assets.ts"];

export function readSource(path: string): SourceFile {
  const text = readFileSync(join(root, path), "utf8");
  const code = text.replace(/\/\*[\s\S]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");
  return { path, code, lines: text.trimEnd().split("\n").length, imports: importsOf(path, code) };
}

/** Static imports, re-exports and dynamic imports of one file. */
export function importsOf(path: string, code: string): Import[] {
  const imports: Import[] = [];
  const add = (specifier: string, typeOnly: boolean): void => {
    const local = specifier.startsWith(".");
    const target = local
      ? normalize(join(dirname(path), specifier))
          .split(sep)
          .join("/")
      : specifier;
    imports.push({ target, package: !local, typeOnly });
  };
  const statement = /^(?:import|export)\s(?:(type)\s)?([^;"']*?)\sfrom\s*["']([^"']+)["']/gm;
  for (const [, type, names, specifier] of code.matchAll(statement)) {
    const listed = /^\{([\s\S]*)\}$/.exec(names!.trim())?.[1];
    const each = listed
      ?.split(",")
      .map((name) => name.trim())
      .filter((name) => name !== "");
    add(specifier!, type !== undefined || (each?.every((name) => name.startsWith("type ")) ?? false));
  }
  for (const [, specifier] of code.matchAll(/^import\s*["']([^"']+)["']/gm)) add(specifier!, false);
  for (const [, specifier] of code.matchAll(/\bimport\(\s*["']([^"']+)["']/g)) add(specifier!, false);
  for (const [, specifier] of code.matchAll(/\brequire\(\s*["']([^"']+)["']/g)) add(specifier!, false);
  return imports;
}
