// Builds dist/cuda/kernels.ptx, or the file that is named, from native/cuda with nvcc: PTX text of the lowest ISA that the kernels allow, so that it
// loads with old drivers and for later GPUs. If there is no nvcc it says so and ends well: everything but CUDA memory
// works without.
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const out = process.argv[2] ?? join(root, "dist/cuda/kernels.ptx");
/** The oldest architecture that nvcc 13 still knows, and the first PTX that has it. */
const architecture = "compute_75";
const isa = "6.3";
/** Float arithmetic as on the host: subnormals kept, nothing fused, divisions rounded right. */
const numerics = ["-ftz=false", "-fmad=false", "-prec-div=true"];

const candidates = [
  process.env.NVCC,
  "nvcc",
  join(process.env.CUDA_HOME ?? "/usr/local/cuda", "bin/nvcc"),
].filter((command) => command !== undefined && command !== "");
const nvcc = candidates.find(
  (command) => spawnSync(command, ["--version"], { stdio: "ignore" }).status === 0,
);

rmSync(out, { force: true });
if (nvcc === undefined) {
  console.warn(
    "tensorbus: nvcc not found: the kernels for CUDA memory are not built. Install the CUDA toolkit, or set NVCC.",
  );
} else {
  writePtx(compile(nvcc));
}

/** nvcc's own text, which asks for as new a driver as nvcc is. */
function compile(command) {
  const folder = mkdtempSync(join(tmpdir(), "tensorbus-cuda-"));
  try {
    const made = join(folder, "kernels.ptx");
    const source = join(root, "native/cuda/kernels.cu");
    execFileSync(
      command,
      [
        "-ptx",
        `-arch=${architecture}`,
        "-std=c++17",
        "-O3",
        `-I${join(root, "native/src")}`,
        ...numerics,
        "-o",
        made,
        source,
      ],
      {
        stdio: ["ignore", "ignore", "inherit"],
      },
    );
    return readFileSync(made, "utf8");
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Without the one hint that needs a newer ISA, the text is of the first that has the architecture. */
function writePtx(text) {
  const lowered = text
    .replace(/^\.version .*$/m, `.version ${isa}`)
    .replace(/^\s*\.pragma "used_bytes_mask [^"]*";\n/gm, "");
  mkdirSync(dirname(out), { recursive: true });
  writeFileSync(out, lowered);
  assemble(out);
}

/** If ptxas is at hand it confirms that the text is what its version says. */
function assemble(ptx) {
  const beside = join(dirname(nvcc), "ptxas");
  const ptxas = existsSync(beside) ? beside : "ptxas";
  if (spawnSync(ptxas, ["--version"], { stdio: "ignore" }).status !== 0) return;
  execFileSync(ptxas, ["-arch=sm_75", "-O0", "-o", "/dev/null", ptx], {
    stdio: ["ignore", "ignore", "inherit"],
  });
}
