/** What a session of UCX opens to strangers: no port, unless its TCP is asked for. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { memoryStores } from "../../src/store/memory-store.ts";
import { type UcxTransportOptions, ucx } from "../../transports/ucx/index.ts";
import { ucxVersion } from "./kit/ucx.ts";

/** The TCP sockets of this process that listen. */
function listening(): number {
  const inodes = new Set(
    ["tcp", "tcp6"].flatMap((file) =>
      readFileSync(`/proc/self/net/${file}`, "utf8")
        .split("\n")
        .map((line) => line.trim().split(/\s+/))
        .filter((fields) => fields[3] === "0A")
        .map((fields) => `socket:[${fields[9]}]`),
    ),
  );
  return readdirSync("/proc/self/fd").filter((fd) => {
    try {
      return inodes.has(readlinkSync(`/proc/self/fd/${fd}`));
    } catch {
      return false; // it was closed meanwhile
    }
  }).length;
}

async function portsOf(options: UcxTransportOptions): Promise<number> {
  const before = listening();
  const session = await ucx(options).open({ rank: 0, world: 1, store: memoryStores()() });
  try {
    return listening() - before;
  } finally {
    await session.close();
  }
}

describe.skipIf(ucxVersion === undefined || process.env["UCX_TLS"] !== undefined)("trust in UCX", () => {
  test("it listens on no port of its own beside that of the authenticated connections", async () => {
    expect(await portsOf({})).toBe(1);
  });

  test("its TCP, which asks nobody who he is, has to be asked for", async () => {
    expect(await portsOf({ transports: "tcp,self" })).toBeGreaterThan(1);
  });
});
