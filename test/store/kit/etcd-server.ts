import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { etcdStore } from "../../../src/store/etcd-store.ts";
import { freePorts } from "../../kit/free-ports.ts";
import type { StoreFixture } from "./compliance.ts";

const version = spawnSync("etcd", ["--version"], { encoding: "utf8" });
/** Why tests of etcd are skipped, if they are. */
export const etcdMissing =
  version.status === 0 ? undefined : "skipped: no etcd on this machine (Debian: apt install etcd-server)";

/** A member of a real etcd cluster, in a process of its own, its data in a folder that goes with it. */
export class EtcdMember implements AsyncDisposable {
  readonly endpoint: string;
  readonly folder: string;
  readonly #arguments: readonly string[];
  #process: ChildProcess | undefined;

  private constructor(endpoint: string, folder: string, args: readonly string[]) {
    this.endpoint = endpoint;
    this.folder = folder;
    this.#arguments = args;
  }

  /** Starts a cluster of `size` members; each answers as soon as most of them are there. */
  static async cluster(size: number, extra: readonly string[] = [], scheme = "http"): Promise<EtcdMember[]> {
    const ports = await freePorts(2 * size);
    const peer = (index: number) => `http://127.0.0.1:${ports[2 * index]}`;
    const names = Array.from({ length: size }, (_, index) => `member${index}`);
    return Promise.all(
      names.map(async (name, index) => {
        const folder = await mkdtemp(join(tmpdir(), "tensorbus-etcd-"));
        const endpoint = `${scheme}://127.0.0.1:${ports[2 * index + 1]}`;
        const member = new EtcdMember(endpoint, folder, [
          ...["--name", name, "--data-dir", join(folder, "data"), "--logger", "zap", "--log-level", "error"],
          ...["--listen-client-urls", endpoint, "--advertise-client-urls", endpoint],
          ...["--listen-peer-urls", peer(index), "--initial-advertise-peer-urls", peer(index)],
          ...["--initial-cluster", names.map((each, at) => `${each}=${peer(at)}`).join(",")],
          ...["--heartbeat-interval", "50", "--election-timeout", "500"],
          ...extra,
        ]);
        member.start();
        return member;
      }),
    );
  }

  static async single(extra: readonly string[] = [], scheme = "http"): Promise<EtcdMember> {
    const [member] = await EtcdMember.cluster(1, extra, scheme);
    return member!;
  }

  start(): void {
    this.#process = spawn("etcd", this.#arguments, { stdio: "ignore" });
  }

  signal(signal: NodeJS.Signals): void {
    this.#process?.kill(signal);
  }

  async kill(): Promise<void> {
    const process = this.#process;
    if (process === undefined || process.exitCode !== null || process.signalCode !== null) return;
    process.kill("SIGKILL");
    await once(process, "exit");
  }

  /** A number of etcd's own metrics, summed over its labels. */
  async metric(name: string): Promise<number> {
    const metrics = await (await fetch(`${this.endpoint}/metrics`)).text();
    const lines = metrics
      .split("\n")
      .filter((line) => line.startsWith(`${name} `) || line.startsWith(`${name}{`));
    return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    await rm(this.folder, { recursive: true, force: true });
  }
}

export async function etcdFixture(): Promise<StoreFixture> {
  const member = await EtcdMember.single();
  return {
    connect: (namespace) =>
      etcdStore({ endpoints: [member.endpoint], ...(namespace === undefined ? {} : { namespace }) }),
    awaited: () => member.metric("etcd_debugging_mvcc_watcher_total"),
    tearDown: () => member[Symbol.asyncDispose](),
  };
}
