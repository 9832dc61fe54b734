import { Writable } from "node:stream";
import { pino } from "pino";
import { describe, expect, it } from "vitest";
import { bootstrapClient } from "../../src/bus/client/bootstrap.ts";
import { userFolder } from "../../src/bus/process/folder.ts";
import * as logging from "../../src/bus/process/logger.ts";
import { defaultPaths } from "../../src/bus/process/paths.ts";
import type { ScriptedMessage } from "./children/scripted-agent.ts";
import { forkFixture, freshPaths, messageOf } from "./kit/processes.ts";

async function startAgent(paths: { queue: string; state: string }, rank: number): Promise<void> {
  const agent = forkFixture("scripted-agent", { ...paths, rank });
  await messageOf<ScriptedMessage>(agent, (message) => "ready" in message);
}

describe("bootstrapClient", () => {
  it("takes AGENT_RANK, else RANK and AGENT_RANK_OFFSET", async () => {
    const paths = freshPaths();
    await startAgent(paths, 6);
    const variables = {
      TENSOR_BUS_COMMAND_QUEUE_PATH: paths.queue,
      TENSOR_BUS_STATE_PATH: paths.state,
      RANK: "2",
    };
    const offset = await bootstrapClient({ env: { ...variables, AGENT_RANK_OFFSET: "4" } });
    const { client, ...resolved } = offset;
    expect(resolved).toEqual({
      agentRank: 6,
      rankFrom: "RANK",
      rank: 2,
      agentRankOffset: 4,
      pathsFrom: "environment",
      commandQueuePath: paths.queue,
      agentStatePath: paths.state,
    });
    expect(await client.queryTransferSignal("none")).toBe(false);
    await client.close();
    const own = await bootstrapClient({ env: { ...variables, AGENT_RANK: "6" } });
    expect(own).toMatchObject({ agentRank: 6, rankFrom: "AGENT_RANK" });
    await own.client.close();
    const named = await bootstrapClient({
      env: { AGENT_RANK: "6" },
      pathNamingFn: (rank) => ({
        commandQueuePath: paths.queue.replace("rank", String(rank)),
        agentStatePath: paths.state,
      }),
    });
    expect(named.pathsFrom).toBe("pathNamingFn");
    await named.client.close();
  });

  it("refuses what names no rank, or half of the paths", async () => {
    for (const env of [
      {},
      { AGENT_RANK: "-1" },
      { AGENT_RANK: "two" },
      { RANK: "1", AGENT_RANK_OFFSET: "1.5" },
      { AGENT_RANK: "1", TENSOR_BUS_STATE_PATH: "/tmp/state" },
    ]) {
      await expect(bootstrapClient({ env })).rejects.toThrow(TypeError);
    }
  });
});

describe("default paths", () => {
  it("are a rank's, a namespace's and a user's own", () => {
    const own = defaultPaths(3, {});
    expect(own.commandQueuePath.startsWith(`${userFolder()}/tensorbus/rank-3/`)).toBe(true);
    const all = [own, defaultPaths(4, {}), defaultPaths(3, { TENSOR_BUS_NAMESPACE: "other" })];
    expect(new Set(all.flatMap((paths) => Object.values(paths))).size).toBe(6);
    for (const namespace of ["../..", "a/b", "..", "."]) {
      const { agentStatePath } = defaultPaths(0, { TENSOR_BUS_NAMESPACE: namespace });
      expect(agentStatePath.startsWith(`${userFolder()}/`)).toBe(true);
      expect(agentStatePath.split("/").filter((part) => /^\.+$/.test(part))).toEqual([]);
      expect(agentStatePath.split("/")).toHaveLength(own.agentStatePath.split("/").length);
    }
    expect(() => defaultPaths(0, { TENSOR_BUS_NAMESPACE: "x".repeat(300) })).toThrow(
      expect.objectContaining({ code: "TB_STORE_OPTIONS" }),
    );
  });
});

describe("the logger", () => {
  it("can be replaced", () => {
    const lines: string[] = [];
    const sink = new Writable({
      write(chunk, _encoding, done) {
        lines.push(String(chunk));
        done();
      },
    });
    const before = logging.logger;
    logging.setLogger(pino({ name: "mine" }, sink));
    logging.logger.warn("hello");
    logging.setLogger(before);
    expect(lines.map((line) => JSON.parse(line))).toMatchObject([{ name: "mine", msg: "hello" }]);
    expect(logging.logger).toBe(before);
  });
});
