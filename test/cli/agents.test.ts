/** The agents of a host under one process: what is refused, how they begin together and end together. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { giveBackWhatStartTook } from "../../src/cli/agent/memory.ts";
import { formatRanks, formatSides, parseRanks, parseSides } from "../../src/cli/agent/ranks.ts";
import { temporaryFolder } from "../bus/kit/processes.ts";
import { freePort } from "../kit/free-ports.ts";
import { BundledCli, type RunningCommand } from "./kit/bundled-cli.ts";

describe("ranks and sides", () => {
  it("are read as they are written", () => {
    expect(parseRanks("--ranks", "0..3,8")).toEqual([0, 1, 2, 3, 8]);
    expect(formatRanks([0, 1, 2, 3, 8])).toBe("0..3,8");
    const sides = parseSides(["trainer=0..1", "engine=4,2"]);
    expect(Object.fromEntries(sides)).toEqual({ trainer: [0, 1], engine: [4, 2] });
    expect(formatSides(sides)).toBe("trainer=0,1;engine=4,2");
    expect(parseSides(formatSides(sides).split(";"))).toEqual(sides);
  });

  it.each(["", "3..1", "a", "0..x", "0,0", "-1"])("%j is refused", (text) => {
    expect(() => parseRanks("--ranks", text)).toThrow(expect.objectContaining({ code: "TB_SPEC" }));
  });

  it.each([["trainer"], ["=0"], ["a=0", "a=1"], ["a=0=1"]])("sides %j are refused", (...sides) => {
    expect(() => parseSides(sides)).toThrow(expect.objectContaining({ code: "TB_SPEC" }));
  });
});

describe("an agent", () => {
  it("compiles nothing that was compiled for the one before, or that Node.js brings compiled", async () => {
    // A folder of its own: other files' agents keep what they have compiled in the one that they share.
    const shared = dirname((await BundledCli.build()).script);
    const folder = mkdtempSync(join(dirname(shared), "agents-"));
    cpSync(shared, folder, { recursive: true });
    rmSync(join(folder, "compiled"), { recursive: true, force: true });
    const argv = ["agent", "--rank", "0", "--store", `tcp://127.0.0.1:${await freePort()}`, "--log", "error"];
    const own = temporaryFolder();
    const start = async () => {
      const running = new BundledCli(join(folder, "cli.js"), ["--profile-deserialization"]).start([
        ...argv,
        ...["--queue", join(own, "queue"), "--state", join(own, "state"), "--drain", "0"],
      ]);
      await running.printed("ready: rank 0");
      running.process.kill("SIGTERM");
      return (await running.finished).stdout;
    };
    expect(await start()).toMatch(/^\[Serializing to \d{7} bytes/m);
    const next = await start();
    expect(next).toMatch(/^\[Deserializing from \d{7} bytes/m);
    // V8 says so if flags have changed since: a flag that is set while a process starts has it compile all of Node.js's modules.
    expect(next).not.toContain("failed check");
  });

  it("drains when it is told to end while it keeps what it has compiled", async () => {
    const shared = dirname((await BundledCli.build()).script);
    const folder = mkdtempSync(join(dirname(shared), "agents-"));
    cpSync(shared, folder, { recursive: true });
    rmSync(join(folder, "compiled"), { recursive: true, force: true });
    const own = temporaryFolder();
    const told = join(own, "told.cjs");
    writeFileSync(
      told,
      `const fs = require("node:fs");
      const write = fs.writeFileSync;
      fs.writeFileSync = (path, ...rest) => {
        if (String(path).includes("cli-commands-")) process.kill(process.pid, "SIGTERM");
        return write(path, ...rest);
      };`,
    );
    const { finished } = new BundledCli(join(folder, "cli.js"), ["--require", told]).start([
      ...["agent", "--rank", "0", "--store", `tcp://127.0.0.1:${await freePort()}`, "--log", "error"],
      ...["--queue", join(own, "queue"), "--state", join(own, "state"), "--drain", "0"],
    ]);
    const { code, stdout } = await finished;
    expect(stdout).toContain("ready: rank 0");
    expect(code).toBe(0);
  });

  it("collects what its start took when no command is under way", () => {
    vi.useFakeTimers({ toFake: ["setTimeout"] });
    try {
      const agent = { commandsUnderWay: 1 };
      giveBackWhatStartTook([{ commandsUnderWay: 0 }, agent]);
      vi.advanceTimersByTime(10_000);
      expect(vi.getTimerCount()).toBe(1);
      agent.commandsUnderWay = 0;
      vi.advanceTimersByTime(10_000);
      expect(vi.getTimerCount()).toBe(0);
    } finally {
      vi.useRealTimers();
    }
  });
});

describe("tensorbus agents", () => {
  let cli: BundledCli;
  beforeAll(async () => {
    cli = await BundledCli.build();
  });

  const running: RunningCommand[] = [];
  afterEach(() => {
    for (const each of running.splice(0)) each.process.kill("SIGKILL");
  });

  async function start(...more: string[]): Promise<RunningCommand> {
    const sides = ["--side", "trainer=0", "--side", "engine=1"];
    const argv = ["agents", ...sides, ...more, "--", "--drain", "1", "--log", "error"];
    const command = cli.start(argv, { XDG_RUNTIME_DIR: temporaryFolder() });
    running.push(command);
    await command.printed("ready: agents 0, 1, store tcp://127.0.0.1:");
    return command;
  }

  it("drains all at SIGTERM, and ends well", async () => {
    const command = await start();
    command.process.kill("SIGTERM");
    const { code, stderr } = await command.finished;
    expect(code, stderr).toBe(0);
    expect(stderr).toContain("[rank 0] ready: rank 0");
  });

  it("ends with the first agent that ends, and says which", async () => {
    const command = await start();
    const { pid } = command.process;
    const [agent] = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").map(Number);
    process.kill(agent!, "SIGKILL");
    const { code, stderr } = await command.finished;
    expect(code).toBe(4);
    expect(stderr).toMatch(/error: the agent of rank [01] was killed by SIGKILL/);
  });

  it("runs several in one process, which ends as one", async () => {
    const command = await start("--per-process", "2");
    const { pid } = command.process;
    const processes = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ");
    expect(processes).toHaveLength(1);
    process.kill(Number(processes[0]), "SIGTERM");
    const { code, stderr } = await command.finished;
    expect(code, stderr).toBe(0);
    for (const rank of [0, 1]) expect(stderr).toContain(`[ranks 0..1] ready: rank ${rank} of`);
  });

  it("refuses processes of no agents, and one place for several", async () => {
    const argv = ["agents", "--ranks", "0..1", "--per-process"];
    expect(await cli.run(...argv, "0")).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("at least 1"),
    });
    const { code, stderr } = await cli.run(...argv, "2", "--", "--metrics-port", "0");
    expect([code, stderr]).toEqual([2, expect.stringContaining("--metrics-port is for one agent")]);
  });

  it("refuses ranks that nobody named", async () => {
    expect(await cli.run("agents")).toMatchObject({ code: 2, stderr: expect.stringContaining("no ranks") });
  });
});
