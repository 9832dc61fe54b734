/**
 * The kernel benchmark: the host kernels of native/src, each beside a memcpy that reads and writes as many bytes in all,
 * run in turns with it by a C program (bench/native/kernels.c).
 */
import { execFileSync } from "node:child_process";
import { join } from "node:path";

export interface KernelOptions {
  readonly root: string;
  /** Measured runs of a case; default 11. */
  readonly pairs?: number | undefined;
  /** Only cases whose name contains this. */
  readonly filter?: string | undefined;
  readonly log?: (line: string) => void;
}

export interface KernelResult {
  /** `kernels/PLACE/CASE`: in a second-level cache, or in memory. */
  readonly name: string;
  readonly runs: number;
  /** Bytes read and written in a run. */
  readonly touchedBytes: number;
  /** Medians. */
  readonly nanoseconds: number;
  readonly memcpyNanoseconds: number;
  readonly gigabytesPerSecond: number;
  /** The time of memcpy over that of the kernel. */
  readonly ratio: number;
}

type Line = Omit<KernelResult, "name" | "runs"> & { readonly case: string; readonly place: string };

export async function bench(options: KernelOptions): Promise<KernelResult[]> {
  const { root, pairs = 11, filter = "", log = () => {} } = options;
  const native = join(root, "native");
  execFileSync("make", ["-s", "-j2", "bench"], { cwd: native, stdio: "inherit" });
  const lines = execFileSync(join(native, "build/bench/kernels"), [String(pairs), filter], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  });
  return lines
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => {
      const { case: name, place, ...measured } = JSON.parse(line) as Line;
      const result = { name: `kernels/${place}/${name}`, runs: pairs, ...measured };
      const speed = `${result.gigabytesPerSecond.toFixed(1)} GB/s, ${result.ratio.toFixed(2)} of memcpy`;
      log(`${result.name.padEnd(64)} ${speed}`);
      return result;
    });
}
