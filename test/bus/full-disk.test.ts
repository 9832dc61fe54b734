/** A file system that is full: what is written is refused with a code, what is there can be taken away, and agents end. */
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { freePort } from "../kit/free-ports.ts";
import { Cluster } from "./kit/agent-cluster.ts";
import { mountsAllowed } from "./kit/privileges.ts";
import { forkFixture, messageOf, temporaryFolder } from "./kit/processes.ts";

const mounted: string[] = [];
afterEach(() => {
  for (const path of mounted.splice(0)) execFileSync("umount", ["--lazy", path]);
});

/** An empty file system of that many KiB. */
function smallDisk(kib: number): string {
  const path = join(temporaryFolder(), "disk");
  mkdirSync(path, { mode: 0o700 });
  execFileSync("mount", ["-t", "tmpfs", "-o", `size=${kib}k,mode=700`, "tmpfs", path]);
  mounted.push(path);
  return path;
}

/** Leaves no room on it. */
function fillDisk(path: string): void {
  for (let bytes = 1 << 20; bytes >= 4096; bytes /= 2) {
    for (let i = 0; i < 64; i++) {
      try {
        writeFileSync(join(path, `ballast-${bytes}-${i}`), Buffer.alloc(bytes));
      } catch {
        break;
      }
    }
  }
}

describe.skipIf(!mountsAllowed)("a folder on a full disk [needs leave to mount a tmpfs]", () => {
  it("refuses writes, is emptied, and takes them again, thousands of times", async () => {
    const child = forkFixture("full", { path: join(smallDisk(400), "queue"), rounds: 1000 });
    const codes = await messageOf<Record<string, number>>(child);
    expect(Object.keys(codes).sort()).toEqual(["TB_NO_SPACE", "none"]);
    expect(codes["TB_NO_SPACE"]).toBeGreaterThan(200);
    expect(codes["none"]).toBeGreaterThan(200);
  });

  it("of 250 KiB is no place for an agent, which says so", async () => {
    const cluster = new Cluster(await freePort(), smallDisk(250));
    const { code, stderr } = await cluster.run(0).finished;
    expect(code).toBe(4);
    expect(stderr).toMatch(/is full/);
  });

  it("tells the client, and lets its agent end", async () => {
    const disk = smallDisk(1500);
    const cluster = new Cluster(await freePort(), disk);
    const agent = await cluster.start(0);
    const client = await cluster.client(0);
    fillDisk(disk);
    const options = { localName: "a", remoteName: "b", expectedWorldSize: 1, blocking: false };
    const codes = new Set<string>();
    for (let i = 0; i < 400 && codes.size === 0; i++) {
      const pairName = `pair ${i} ${"x".repeat(3000)}`;
      await client.initPair({ ...options, pairName }).catch(({ code }) => codes.add(code));
    }
    expect([...codes]).toEqual(["TB_NO_SPACE"]);
    agent.process.kill("SIGTERM");
    expect((await agent.finished).code).toBe(0);
  });
});
