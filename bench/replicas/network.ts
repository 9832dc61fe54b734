/** Two network namespaces with one link between them, which carries no more than it is told: two hosts on one machine. */
import { execFileSync } from "node:child_process";

/** Addresses of the two ends, which no other network sees. */
const addresses = ["10.99.99.1", "10.99.99.2"] as const;

export class ThrottledLink {
  readonly #names: readonly [string, string];

  /** Needs root, `ip` and `tc` of iproute2; fails with what they say otherwise. Both directions carry as much. */
  constructor(bytesPerSecond: number) {
    this.#names = [`tb${process.pid}a`, `tb${process.pid}b`];
    try {
      for (const name of this.#names) run("ip", "netns", "add", name);
      const [here, there] = this.#names;
      run("ip", "-n", here, "link", "add", "name", "link0", "type", "veth", "peer", "name", "link1");
      run("ip", "-n", here, "link", "set", "link1", "netns", there);
      this.#names.forEach((name, end) => {
        const device = `link${end}`;
        run("ip", "-n", name, "addr", "add", `${addresses[end]}/24`, "dev", device);
        for (const one of ["lo", device]) run("ip", "-n", name, "link", "set", one, "up");
        const rate = ["rate", `${bytesPerSecond * 8}bit`, "burst", "128kb", "latency", "100ms"];
        run("tc", "-n", name, "qdisc", "add", "dev", device, "root", "tbf", ...rate);
      });
    } catch (error) {
      this.remove();
      throw error;
    }
  }

  address(end: 0 | 1): string {
    return addresses[end];
  }

  /** The command and arguments that run a command at one end. */
  at(end: 0 | 1, command: string, ...args: readonly string[]): readonly [string, readonly string[]] {
    return ["ip", ["netns", "exec", this.#names[end], command, ...args]];
  }

  remove(): void {
    for (const name of this.#names) {
      try {
        run("ip", "netns", "delete", name);
      } catch {
        // It was not made.
      }
    }
  }
}

function run(command: string, ...args: readonly string[]): void {
  execFileSync(command, args, { stdio: ["ignore", "ignore", "pipe"] });
}
