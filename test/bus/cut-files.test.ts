/**
 * Files of the bus that another process cuts while they are in use, at any moment of a transaction: an error, never a
 * signal. The children use them without a pause, so that nearly every cut falls into a transaction.
 */
import { rmSync, statSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { expect, it } from "vitest";
import { freePort } from "../kit/free-ports.ts";
import { Cluster } from "./kit/agent-cluster.ts";
import { exitOf, forkFixture, messageOf, temporaryFolder } from "./kit/processes.ts";

interface Told {
  readonly using?: string;
  readonly ended?: string;
}

let state = 20_262;
function below(limit: number): number {
  state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
  return Math.floor((state / 2 ** 32) * limit);
}

/** Turns of a loop: no timer is as fine as a transaction. */
function spin(turns: number): number {
  let sum = 0;
  for (let i = 0; i < turns; i++) sum += i % 7;
  return sum;
}

/** Cuts one of the files of a folder that is in use; what was done. */
function cut(path: string): string {
  const file = join(path, below(3) === 0 ? "lock.mdb" : "data.mdb");
  const { size } = statSync(file);
  const length = [0, 100, 4096, 8192, 4096 * below(size / 4096)][below(5)]!;
  spin(below(200_000));
  truncateSync(file, length);
  return `${file} cut to ${length} of ${size}`;
}

/** How often each end came; ends with the first that is a signal. */
async function cutAll(cases: number, unguarded: boolean): Promise<Record<string, number>> {
  const folder = temporaryFolder();
  const child = forkFixture("cut", { folder, cases, unguarded });
  const ends: Record<string, number> = {};
  for (let i = 0; i < cases; i++) {
    const { using, ended: tooSoon } = await messageOf<Told>(child);
    if (using === undefined) throw new Error(`it ended before anything was cut: ${tooSoon}`);
    const telling = messageOf<Told>(child);
    const what = cut(join(using, ["queue", "state"][below(2)]!));
    const told = await telling.catch(({ message }) => ({ ended: message as string }));
    const ended = told.ended ?? "nothing";
    ends[ended] = (ends[ended] ?? 0) + 1;
    if (ended.startsWith("the process ended") && !unguarded) throw new Error(`${ended}: ${what}`);
    if (ended.startsWith("the process ended")) return ends;
    rmSync(using, { recursive: true });
  }
  expect(await exitOf(child)).toEqual({ code: 0, signal: null });
  return ends;
}

it("a process whose files are cut in the middle of its transactions hears TB_BUS_FORMAT, each time", async () => {
  expect(await cutAll(40, false)).toEqual({ TB_BUS_FORMAT: 40 });
});

it("which the handler of SIGBUS does: without it the process ends", async () => {
  expect(await cutAll(40, true)).toMatchObject({ "the process ended with SIGBUS": 1 });
});

it.each([
  "queue",
  "state",
] as const)("an agent whose %s is cut while it answers ends when it is told to", async (which) => {
  const cluster = new Cluster(await freePort());
  const agent = await cluster.start(0);
  const { commandQueuePath, agentStatePath } = cluster.paths(0);
  const paths = { queue: commandQueuePath, state: agentStatePath };
  const client = forkFixture("cut", { ask: paths });
  await messageOf<Told>(client, ({ using }) => using !== undefined);
  const told = messageOf<Told>(client);
  cut(paths[which]);
  // Where the agent meets the damage first, a client of this kind waits for ever.
  const ended = await Promise.race([told, setTimeout(2000, undefined)]);
  expect(ended?.ended ?? "TB_BUS_FORMAT").toBe("TB_BUS_FORMAT");
  told.catch(() => {});
  agent.process.kill("SIGTERM");
  expect(await agent.finished).toMatchObject({ code: 0 });
});
