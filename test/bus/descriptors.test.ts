/** No descriptors left: an error that says so and how many there may be, wherever the last one was taken. */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, it } from "vitest";
import { bundle, temporaryFolder } from "./kit/processes.ts";

it("a client, a store, the transports and a door say that descriptors are missing, never anything else", async () => {
  const folder = temporaryFolder();
  const paths = { commandQueuePath: join(folder, "queue"), agentStatePath: join(folder, "state") };
  const command = `ulimit -n 300; exec "$0" "$@"`;
  const child = [process.execPath, bundle("exhausted"), JSON.stringify(paths)];
  const { stdout } = await promisify(execFile)("bash", ["-c", command, ...child]);
  expect(JSON.parse(stdout)).toEqual({
    client: ["TB_SYSTEM with the limit", "TB_AGENT_LOST"],
    store: ["TB_SYSTEM with the limit", "TB_CONNECT"],
    tcp: ["TB_SYSTEM with the limit", "none"],
    shm: ["TB_SYSTEM with the limit", "none"],
    door: ["TB_SYSTEM with the limit", "none"],
  });
});
