/** NCCL: where its library is, and what can be asked of it without a device. */
import { existsSync, readdirSync } from "node:fs";
import { basename, delimiter, dirname, join } from "node:path";
import { declareNative } from "./native.ts";

const native = declareNative({
  tb_nccl_version: ["string", "out u32"],
  tb_nccl_unique_id: ["string", "pointer"],
  tb_session_use_nccl: ["u64", "string"],
  tb_nccl_join: ["u64", "pointer", "u32", "pointer", "u32", "out u64"],
  tb_nccl_state: ["u64", "u64", "out u32"],
  tb_nccl_leave: ["u64", "u64"],
});

export const ncclSoname = "libnccl.so.2";
/** Names the library, before any other place is looked at. */
export const ncclVariable = "TENSOR_BUS_LIBNCCL";
const ncclIdBytes = 128;

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * What to load NCCL as: `TENSOR_BUS_LIBNCCL`; else the soname, if the linker finds it; else the library that a wheel of
 * `nvidia-nccl-cu13` or `-cu12` put beside Python's packages. If there is none it is the soname, whose loading then
 * says what was looked for.
 */
export function findNccl(environment: Environment = process.env): string {
  const named = environment[ncclVariable];
  if (named !== undefined && named !== "") return named;
  const fromWheel = wheelsOf(environment).find((path) => existsSync(path));
  return fromWheel !== undefined && !linkerHas(environment) ? fromWheel : ncclSoname;
}

/** Says where a wheel may have put it, the most specific environment first. */
function wheelsOf(environment: Environment): string[] {
  const paths = (environment["PYTHONPATH"] ?? "").split(delimiter).filter((path) => path !== "");
  const prefixes = [
    environment["VIRTUAL_ENV"],
    environment["CONDA_PREFIX"],
    ...pythonsOf(environment),
    environment["HOME"] === undefined ? undefined : join(environment["HOME"], ".local"),
    "/usr/local",
    "/usr",
  ];
  const folders = prefixes.flatMap((prefix) => (prefix === undefined ? [] : sitePackagesOf(prefix)));
  return [...paths, ...folders].map((folder) => join(folder, "nvidia/nccl/lib", ncclSoname));
}

/** The prefixes of the Pythons in the search path; pyenv's there are scripts, and stand for all of its versions. */
function pythonsOf(environment: Environment): string[] {
  return (environment["PATH"] ?? "")
    .split(delimiter)
    .filter((folder) => folder.startsWith("/") && existsSync(join(folder, "python3")))
    .flatMap((folder) => {
      const versions = join(dirname(folder), "versions");
      return basename(folder) === "shims"
        ? entriesOf(versions).map((version) => join(versions, version))
        : [dirname(folder)];
    });
}

function sitePackagesOf(prefix: string): string[] {
  const lib = join(prefix, "lib");
  return entriesOf(lib)
    .filter((name) => /^python3(\.\d+)?$/.test(name))
    .flatMap((name) => ["site-packages", "dist-packages"].map((folder) => join(lib, name, folder)));
}

/** True if the linker would find the soname in its usual places. */
function linkerHas(environment: Environment): boolean {
  const folders = (environment["LD_LIBRARY_PATH"] ?? "").split(":").filter((folder) => folder !== "");
  const system = ["/lib", "/usr/lib", "/usr/local/lib", "/usr/lib64", "/lib64"];
  const multiarch = ["x86_64-linux-gnu", "aarch64-linux-gnu"].flatMap((triple) => [
    `/lib/${triple}`,
    `/usr/lib/${triple}`,
  ]);
  return [...folders, ...system, ...multiarch].some((folder) => existsSync(join(folder, ncclSoname)));
}

function entriesOf(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

/** `TB_LIBRARY` if it is missing or too old; the message has both versions. */
export function ncclVersion(path: string = findNccl()): { readonly number: number; readonly text: string } {
  const number = native.tb_nccl_version(path);
  const text = `${Math.floor(number / 10_000)}.${Math.floor(number / 100) % 100}.${number % 100}`;
  return { number, text };
}

/** A new unique id. This process listens for those who join by it, until all have. */
export function ncclUniqueId(path: string = findNccl()): Uint8Array {
  const id = new Uint8Array(ncclIdBytes);
  native.tb_nccl_unique_id(path, id);
  return id;
}

/** What a session with the carrier `nccl` needs before it is used. `TB_LIBRARY` if it is missing or too old. */
export function useNccl(session: bigint, library: string): void {
  native.tb_session_use_nccl(session, library);
}

/** Begins to join a communicator; `ranks` ascend. */
export function joinCommunicator(
  session: bigint,
  { ranks, id, epoch }: { readonly ranks: Int32Array; readonly id: Uint8Array; readonly epoch: number },
): bigint {
  return native.tb_nccl_join(session, ranks, ranks.length, id, epoch);
}

/** `true` once all have joined; throws why it was aborted. */
export function isJoined(session: bigint, communicator: bigint): boolean {
  return native.tb_nccl_state(session, communicator) === 1;
}

/** Aborts it, and what is under way on it. */
export function leaveCommunicator(session: bigint, communicator: bigint): void {
  native.tb_nccl_leave(session, communicator);
}
