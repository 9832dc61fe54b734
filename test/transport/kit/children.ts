import { type ChildProcess, fork } from "node:child_process";
import { builtChild } from "../../kit/builds.ts";
import type { ChildMessage, ParentMessage, RankSetup } from "../children/rank.ts";

/** A script of `children/`, one file but for koffi. */
export function bundleChild(name: string): string {
  return builtChild("transport", name, { external: ["koffi"] });
}

/** A rank in a process of its own. */
export class ChildRank {
  readonly process: ChildProcess;
  readonly #waiting: ((message: ChildMessage) => void)[] = [];
  readonly #received: ChildMessage[] = [];

  constructor(file: string) {
    this.process = fork(file, { execArgv: [], stdio: "inherit" });
    this.process.on("message", (message: ChildMessage) => {
      const next = this.#waiting.shift();
      if (next === undefined) this.#received.push(message);
      else next(message);
    });
  }

  /** Sends a message and resolves with the answer. */
  async ask<K extends ChildMessage["kind"]>(
    message: ParentMessage,
    answer: K,
  ): Promise<ChildMessage & { readonly kind: K }> {
    this.process.send(message);
    const received =
      this.#received.shift() ??
      (await new Promise<ChildMessage>((resolve, reject) => {
        this.process.once("exit", () => reject(new Error("the child ended")));
        this.#waiting.push(resolve);
      }));
    if (received.kind !== answer) throw new Error(`the child said ${received.kind}, not ${answer}`);
    return received as ChildMessage & { readonly kind: K };
  }

  /** Ends the process, if it has not ended yet. */
  end(): void {
    this.process.kill("SIGCONT");
    this.process.kill("SIGKILL");
  }
}

/** That many ranks, each in its process, prepared for an exchange of all with all. */
export async function startRanks(file: string, setup: Omit<RankSetup, "rank">): Promise<ChildRank[]> {
  const ranks = Array.from({ length: setup.world }, () => new ChildRank(file));
  await Promise.all(ranks.map((child, rank) => child.ask({ kind: "prepare", rank, ...setup }, "prepared")));
  return ranks;
}
