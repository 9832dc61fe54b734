/** A project that has the package as its users have it: installed from what is published, without a compiler or scripts. */
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, realpathSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

export const root = join(import.meta.dirname, "../../..");
export const packages = join(root, "build/packages");

interface Ran {
  readonly status: number | null;
  readonly output: string;
}

/** Node.js and nothing else is on the PATH of what runs in it. */
export class Consumer {
  readonly folder = mkdtempSync(join(tmpdir(), "tensorbus-consumer-"));
  readonly #path = join(this.folder, "bin");

  constructor() {
    mkdirSync(this.#path);
    symlinkSync(process.execPath, join(this.#path, "node"));
    this.write("package.json", JSON.stringify({ name: "consumer", private: true, type: "module" }));
  }

  write(file: string, text: string): string {
    const path = join(this.folder, file);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, text);
    return path;
  }

  /** Runs a script of Node.js. */
  node(...args: string[]): Ran {
    const { status, stdout, stderr } = spawnSync(process.execPath, args, {
      cwd: this.folder,
      encoding: "utf8",
      env: { PATH: this.#path, HOME: this.folder, XDG_RUNTIME_DIR: this.folder },
      timeout: 110_000,
    });
    return { status, output: stdout + stderr };
  }

  /** A development tool of this repository, on this project. */
  tool(file: string, ...args: string[]): Ran {
    return this.node(join(root, "node_modules", file), ...args);
  }

  /** `npm install` with this machine's settings for npm; the scope of the platforms' packages is on `registry`. */
  async install(registry: string, ...args: string[]): Promise<Ran> {
    const npm = realpathSync(execFileSync("which", ["npm"], { encoding: "utf8" }).trim());
    const options = ["--ignore-scripts", "--no-audit", "--no-fund", `--@tensorbus:registry=${registry}`];
    // This process answers as the registry meanwhile.
    const child = spawn(process.execPath, [npm, "install", ...options, ...args], {
      cwd: this.folder,
      env: { ...process.env, PATH: this.#path },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let output = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (output += data));
    const [status] = (await once(child, "close")) as [number | null];
    return { status, output };
  }
}
