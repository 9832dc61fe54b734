// What licences ask for: the notice of each package whose code is in a bundle, with every copy of it.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const modules = join(import.meta.dirname, "../node_modules");

/** The packages that these paths of esbuild's `metafile` lead into. */
export function packagesIn(paths) {
  return new Set(paths.flatMap((path) => /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1] ?? []));
}

export function noticesOf(packages) {
  return [...packages].sort().map(noticeOf).join("\n\n\n");
}

function noticeOf(name) {
  const path = join(modules, name);
  const { version, license, author, repository } = JSON.parse(
    readFileSync(join(path, "package.json"), "utf8"),
  );
  const file = readdirSync(path).find((entry) => /^licen[cs]e/i.test(entry));
  // Its author has published none but this word.
  const short = `Licence: ${license}\nCopyright: ${author?.name ?? author}\n${repository?.url ?? repository}`;
  return `${name} ${version}\n\n${file === undefined ? short : readFileSync(join(path, file), "utf8").trim()}`;
}
