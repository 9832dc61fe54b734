/** Agent and client in different namespaces of the kernel: told apart at once, by name. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { freePort } from "../kit/free-ports.ts";
import { Cluster } from "./kit/agent-cluster.ts";
import { namespacesAllowed } from "./kit/privileges.ts";
import { bundle } from "./kit/processes.ts";

interface Visit {
  readonly code: string;
  readonly message?: string;
  readonly ms: number;
}

/** Connects from a process that `unshare` starts with these options. */
async function visit(cluster: Cluster, options: readonly string[], timeoutMs = 10_000): Promise<Visit> {
  const command = [process.execPath, bundle("visitor"), JSON.stringify({ ...cluster.paths(0), timeoutMs })];
  const { stdout } = await promisify(execFile)("unshare", [...options, "--fork", ...command]);
  return JSON.parse(stdout) as Visit;
}

describe.skipIf(!namespacesAllowed)("a client in another namespace [needs leave to make namespaces]", () => {
  const cases = [
    ["PID namespace", ["--pid", "--mount-proc"], /PID namespace/],
    ["PID namespace, without a /proc of it", ["--pid"], /PID namespace/],
    ["time namespace", ["--time", "--monotonic", "100000"], /time namespace/],
    ["time namespace that is behind", ["--time", "--monotonic", "-10"], /time namespace/],
  ] as const;

  it("is told which, and the agent goes on as if nobody had come", async () => {
    const cluster = new Cluster(await freePort());
    await cluster.start(0);
    for (const [kind, options, message] of cases) {
      const { code, message: told, ms } = await visit(cluster, options);
      expect([kind, code]).toEqual([kind, "TB_NAMESPACE"]);
      expect(told).toMatch(message);
      expect(ms).toBeLessThan(5000);
    }
    expect((await visit(cluster, [])).code).toBe("none");
  });

  it("that has ended leaves a folder that others can use", async () => {
    const cluster = new Cluster(await freePort());
    const alone = await visit(cluster, ["--pid", "--mount-proc"], 100);
    expect(alone.code).toBe("TB_AGENT_LOST");
    await cluster.start(0);
    expect((await visit(cluster, [])).code).toBe("none");
  });
});
