/** A kernel, or a file system, that gives out no locks: an error that says so, wherever the first one is missing. */
import { join } from "node:path";
import { expect, it } from "vitest";
import type { LocklessTry } from "./children/lockless.ts";
import { forkFixture, messageOf, temporaryFolder } from "./kit/processes.ts";

const [getLock, setLock, getOwnLock, setOwnLock] = [5, 6, 36, 37];

it.each([
  ["taken", [setLock, setOwnLock]],
  ["asked about", [getLock, setLock, getOwnLock, setOwnLock]],
] as const)("a folder whose locks cannot be %s is not opened, leaves nothing, and is opened later", async (_, commands) => {
  const path = join(temporaryFolder(), "queue");
  const child = forkFixture("lockless", { path, commands, upTo: 10 });
  const tries = await messageOf<LocklessTry[]>(child);
  expect(tries.map(({ left, later }) => [left, later])).toEqual(tries.map(() => [0, "none"]));
  const refused = tries.filter(({ code }) => code !== "none");
  expect(refused.map(({ code }) => code)).toEqual(["TB_SYSTEM", "TB_SYSTEM", "TB_SYSTEM"]);
  const advice = "(if its file system has none, name a folder on a local one): No locks available";
  // The gate's, that of the folder's use, and LMDB's own, whose binding would not survive it.
  expect(refused.map(({ message }) => message)).toEqual(
    ["locks", "locks", "lock.mdb"].map((file) => `the locks of ${join(path, file)} cannot be had ${advice}`),
  );
});
