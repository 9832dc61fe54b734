/** The examples as a reader runs them, but on the sources: `tensorbus` is what `npm run build` would make of them. */
import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";
import { nodeBundle } from "../../scripts/node-bundle.mjs";

const root = join(import.meta.dirname, "../..");

interface Finished {
  readonly code: number | null;
  readonly output: string;
}

export class Examples {
  readonly folder: string;

  private constructor(folder: string) {
    this.folder = folder;
  }

  /** Bundles scripts of the repository, each by the name it is to have. */
  static async build(scripts: Readonly<Record<string, string>>): Promise<Examples> {
    mkdirSync(join(root, "build"), { recursive: true });
    const examples = new Examples(mkdtempSync(join(root, "build", "examples-")));
    await build({
      entryPoints: Object.fromEntries(
        Object.entries(scripts).map(([name, script]) => [name, join(root, script)]),
      ),
      outdir: examples.folder,
      ...nodeBundle,
      splitting: true,
      packages: "external",
      alias: {
        tensorbus: join(root, "src/index.ts"),
        "tensorbus/model": join(root, "src/model/index.ts"),
        "tensorbus/transports/memory": join(root, "transports/memory/index.ts"),
        "tensorbus/transports/tcp": join(root, "transports/tcp/index.ts"),
      },
      logLevel: "warning",
    });
    return examples;
  }

  async run(name: string, environment: NodeJS.ProcessEnv = {}): Promise<Finished> {
    const child = spawn(process.execPath, [join(this.folder, `${name}.js`)], {
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, ...environment },
    });
    let output = "";
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8").on("data", (text: string) => {
        output += text;
      });
    }
    const code = await new Promise<number | null>((resolve, reject) => {
      child.once("error", reject);
      child.once("close", resolve);
    });
    return { code, output };
  }

  remove(): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}
