import { TensorBusError } from "../../errors.ts";
import { DeviceMesh } from "../../layout/index.ts";
import { decodeText, readBytes, writeWholeFile } from "../../model/files.ts";
import { maxSpecBytes, parseSpec, type Spec, type SpecSide } from "../../model/spec.ts";
import { isSavedPlan, Plan, planTransfer } from "../../plan/index.ts";

/** A plan, and what its spec says besides: the names of its sides, budgets. */
export interface Planned {
  readonly spec: Spec;
  readonly plan: Plan;
}

/** The plan of a trillion parameters in 70,000 tensors has less than a hundredth of this. */
const maxPlanBytes = 64 * 2 ** 20;

/**
 * The plan of a file, which is a spec or a plan that `plan --save` wrote: its first bytes say which. Errors as those of
 * `loadSpec`, `planTransfer` and `Plan.load`.
 */
export async function loadPlanned(path: string): Promise<Planned> {
  const bytes = await readBytes(path, maxPlanBytes, { pipes: true });
  if (isSavedPlan(bytes)) return ofBytes(bytes, path);
  checkSpecBytes(bytes, path);
  const spec = await parseSpec(decodeText(bytes, path), path);
  return { spec, plan: await planTransfer(spec.input) };
}

/** The plan of a file that `plan --save` wrote; `TB_PLAN_FORMAT` for any other. */
export async function loadSavedPlan(path: string): Promise<Planned> {
  return ofBytes(await readBytes(path, maxPlanBytes, { pipes: true }), path);
}

/** Writes the canonical bytes of a plan, whose SHA-256 is its digest; the file has all of them or is as it was. */
export async function savePlan(path: string, plan: Plan): Promise<void> {
  await writeWholeFile(path, plan.bytes);
}

function checkSpecBytes({ length }: Uint8Array, path: string): void {
  if (length <= maxSpecBytes) return;
  throw new TensorBusError(
    "TB_FILE",
    `${path} has ${length} bytes; a spec can have at most ${maxSpecBytes}`,
    {
      details: { path, bytes: length, maxBytes: maxSpecBytes },
    },
  );
}

function ofBytes(bytes: Uint8Array, path: string): Planned {
  const plan = load(bytes, path);
  const { input } = plan;
  const side = (name: "source" | "target"): SpecSide => ({
    name,
    mesh: meshOf(Object.values(input.pairs).map((pair) => pair[name].mesh)),
    stridedShard: undefined,
  });
  return {
    plan,
    spec: { file: path, source: side("source"), target: side("target"), input, budget: {} },
  };
}

function load(bytes: Uint8Array, path: string): Plan {
  try {
    return Plan.load(bytes);
  } catch (error) {
    if (!(error instanceof TensorBusError)) throw error;
    throw new TensorBusError(error.code, `${path}: ${error.message}`, {
      details: { path, ...error.details },
      cause: error,
    });
  }
}

/** The mesh of a side; if its pairs have several, their ranks in one row. */
function meshOf(meshes: readonly DeviceMesh[]): DeviceMesh {
  const [first, ...others] = meshes;
  if (first !== undefined && others.every((mesh) => mesh === first)) return first;
  const ranks = [...new Set(meshes.flatMap((mesh) => [...mesh.ranks]))].sort((a, b) => a - b);
  return new DeviceMesh([ranks.length], { ranks });
}
