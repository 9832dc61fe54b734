/** Ranks of the nccl transport in processes of their own, on the doubles of libcuda and libnccl (native/test/doubles). */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { expect, test } from "vitest";
import { serveTcpStore } from "../../src/store/index.ts";
import type { Answer, Task } from "./children/nccl-rank.ts";
import { bundleChild } from "./kit/children.ts";
import { useDoubles } from "./kit/nccl-doubles.ts";

useDoubles(3);

const world = 3;
const lost = { code: "TB_PEER_LOST", rank: 2 };

class Rank {
  readonly process: ChildProcess = fork(bundleChild("nccl-rank"), { stdio: "inherit" });

  async ask(task: Task): Promise<Answer> {
    this.process.send(task);
    let answer: Answer;
    do [answer] = (await once(this.process, "message")) as [Answer];
    while (answer === "moving");
    return answer;
  }

  /** Posts, and resolves in the middle of the round. */
  async postUntilMoving(): Promise<void> {
    this.process.send({ kind: "post" } satisfies Task);
    await once(this.process, "message");
  }
}

/** Three ranks that have prepared an exchange of all with all, in steps that each take a while. */
async function within(body: (ranks: Rank[], storePort: number) => Promise<void>): Promise<void> {
  await using store = await serveTcpStore();
  process.env["NCCL_DOUBLE_DELAY_US"] = "100000";
  const ranks = Array.from({ length: world }, () => new Rank());
  try {
    expect(
      await Promise.all(
        ranks.map((one, rank) => one.ask({ kind: "open", rank, world, storePort: store.port })),
      ),
    ).toEqual(["done", "done", "done"]);
    expect(await prepare(ranks)).toEqual(["done", "done", "done"]);
    await body(ranks, store.port);
  } finally {
    for (const { process } of ranks) {
      process.kill("SIGCONT");
      process.kill("SIGKILL");
    }
  }
}

const prepare = (ranks: readonly Rank[]) => Promise.all(ranks.map((one) => one.ask({ kind: "prepare" })));
const post = (one: Rank, timeoutMs = 30_000) => one.ask({ kind: "post", timeoutMs });

test("one that is killed in the middle of a round is lost to all; come back, it gets another communicator", () =>
  within(async (ranks, storePort) => {
    const rounds = ranks.slice(0, 2).map((one) => post(one));
    await ranks[2]!.postUntilMoving();
    ranks[2]!.process.kill("SIGKILL");
    expect(await Promise.all(rounds)).toEqual([lost, lost]);
    expect(await post(ranks[0]!)).toEqual(lost);
    for (const one of ranks.slice(0, 2)) expect(await one.ask({ kind: "release" })).toBe("done");
    ranks[2] = new Rank();
    expect(await ranks[2].ask({ kind: "open", rank: 2, world, storePort })).toBe("done");
    expect(await prepare(ranks)).toEqual(["done", "done", "done"]);
    expect(await Promise.all(ranks.map((one) => post(one)))).toEqual(["done", "done", "done"]);
  }));

test("one that stops in the middle of a round: the others time out, abort, and their memory is quiet", () =>
  within(async (ranks) => {
    const rounds = ranks.slice(0, 2).map((one) => post(one, 4000));
    await ranks[2]!.postUntilMoving();
    ranks[2]!.process.kill("SIGSTOP");
    const outcomes = await Promise.all(rounds);
    expect(outcomes).toContainEqual({ code: "TB_TIMEOUT", rank: expect.anything() });
    // What was aborted is not used again.
    expect(await post(ranks[0]!, 2000)).toMatchObject({ code: "TB_INVALIDATED" });
  }));
