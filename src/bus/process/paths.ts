/** The places where the agent of a rank and its clients meet, unless they are told otherwise. */
import { join } from "node:path";
import { TensorBusError } from "../../errors.ts";
import { userFolder } from "./folder.ts";

export interface BusPaths {
  readonly commandQueuePath: string;
  readonly agentStatePath: string;
}

type Environment = Readonly<Record<string, string | undefined>>;

const defaultNamespace = "tensorbus";

/**
 * The default paths of a rank: of this user and of the namespace (`TENSOR_BUS_NAMESPACE`), so that two jobs on one host do
 * not meet. `TB_STORE_OPTIONS` for a namespace that is no name of a folder.
 */
export function defaultPaths(rank: number, env: Environment = process.env): BusPaths {
  const namespace = env["TENSOR_BUS_NAMESPACE"] || defaultNamespace;
  // Percent-encoding leaves two dots as they are.
  const folder = encodeURIComponent(namespace).replace(/^\.+$/, (dots) => dots.replaceAll(".", "%2E"));
  if (folder.length > 200) {
    throw new TensorBusError("TB_STORE_OPTIONS", `the namespace is too long: ${folder.length} bytes`, {
      details: { namespace },
    });
  }
  const base = join(userFolder(), folder, `rank-${rank}`);
  return { commandQueuePath: join(base, "queue"), agentStatePath: join(base, "state") };
}
