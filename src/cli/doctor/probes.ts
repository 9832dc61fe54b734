import { execFile } from "node:child_process";
import { existsSync, readdirSync, readFileSync, realpathSync } from "node:fs";
import { join } from "node:path";

const probeTimeoutMs = 20_000;

/** What a program prints, trimmed; undefined if it is missing, fails, or takes too long. */
export function outputOf(
  command: string,
  args: readonly string[],
  environment: NodeJS.ProcessEnv,
): Promise<string | undefined> {
  return new Promise((resolve) => {
    execFile(
      command,
      [...args],
      { env: environment, timeout: probeTimeoutMs, windowsHide: true },
      (error, stdout, stderr) => {
        resolve(error === null ? stdout.trim() || stderr.trim() : undefined);
      },
    );
  });
}

/** A soft and a hard limit of this process, as the kernel shows them; undefined on other systems than Linux. */
export function limitOf(name: string): { readonly soft: string; readonly hard: string } | undefined {
  const line = textOf("/proc/self/limits")
    ?.split("\n")
    .find((entry) => entry.startsWith(name));
  const [soft, hard] = line?.slice(name.length).trim().split(/\s+/) ?? [];
  return soft === undefined || hard === undefined ? undefined : { soft, hard };
}

/** The text of a small file; undefined if it cannot be read. */
function textOf(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}

/**
 * Finds a shared library: in the linker's cache, in LD_LIBRARY_PATH, or in the folders that the NVIDIA wheels of
 * Python install to. Undefined if it is in none.
 */
export async function findLibrary(
  soname: string,
  sitePackages: readonly string[],
  environment: NodeJS.ProcessEnv,
): Promise<string | undefined> {
  const folders = [
    ...(environment["LD_LIBRARY_PATH"] ?? "").split(":").filter((folder) => folder !== ""),
    ...sitePackages.flatMap(wheelFolders),
  ];
  const found = folders.map((folder) => join(folder, soname)).find((path) => existsSync(path));
  if (found !== undefined) return realpathSync(found);
  const cache =
    (await outputOf("ldconfig", ["-p"], environment)) ??
    (await outputOf("/sbin/ldconfig", ["-p"], environment));
  const line = cache?.split("\n").find((entry) => entry.trim().startsWith(`${soname} `));
  return line?.split("=>")[1]?.trim();
}

/** `nvidia/<package>/lib` of a site-packages folder. */
function wheelFolders(sitePackages: string): string[] {
  const nvidia = join(sitePackages, "nvidia");
  try {
    return readdirSync(nvidia).map((name) => join(nvidia, name, "lib"));
  } catch {
    return [];
  }
}

/** What Python says of itself and of torch; undefined if there is no Python. */
export async function probePython(
  environment: NodeJS.ProcessEnv,
): Promise<
  | { readonly version: string; readonly torch: string | undefined; readonly sitePackages: string[] }
  | undefined
> {
  const script = `
import json, sys, sysconfig
from importlib import metadata
try:
    torch = metadata.version("torch")
except metadata.PackageNotFoundError:
    torch = None
print(json.dumps([sys.version.split()[0], torch, sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})]))`;
  const text = await outputOf("python3", ["-c", script], environment);
  if (text === undefined) return undefined;
  const [version, torch, sitePackages] = JSON.parse(text) as [string, string | null, string[]];
  return { version, torch: torch ?? undefined, sitePackages };
}
