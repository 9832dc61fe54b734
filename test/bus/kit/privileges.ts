/** What this user may do on this machine; where something is not allowed, the tests that need it are skipped and say so. */
import { spawnSync } from "node:child_process";

function succeeds(command: string, ...parameters: string[]): boolean {
  return spawnSync(command, parameters, { stdio: "ignore" }).status === 0;
}

/** A tmpfs in a mount namespace of its own, which goes with the command. */
export const mountsAllowed = succeeds("unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt");

/** Processes in PID and time namespaces of their own. */
export const namespacesAllowed = succeeds("unshare", "--pid", "--fork", "--mount-proc", "--time", "true");
