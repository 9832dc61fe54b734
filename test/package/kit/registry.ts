/** What the registry of npm does for the packages of a folder: their documents and archives, on loopback. */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";

export interface Registry extends AsyncDisposable {
  readonly url: string;
}

interface Manifest {
  readonly name: string;
  readonly version: string;
}

export async function serveRegistry(folder: string): Promise<Registry> {
  const archives = new Map(
    readdirSync(folder)
      .filter((file) => file.endsWith(".tgz"))
      .map((file) => [file, readFileSync(join(folder, file))]),
  );
  const packages = new Map(
    [...archives].map(([file, bytes]) => [manifestOf(join(folder, file)).name, { file, bytes }] as const),
  );
  const server = createServer(({ url = "/" }, answer) => {
    const path = decodeURIComponent(url.slice(1));
    const found = packages.get(path);
    const archive = archives.get(path);
    if (found !== undefined) {
      const { port } = server.address() as AddressInfo;
      answer.end(
        JSON.stringify(documentOf(join(folder, found.file), `http://127.0.0.1:${port}/${found.file}`)),
      );
    } else if (archive !== undefined) answer.end(archive);
    else answer.writeHead(404).end("{}");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

function manifestOf(archive: string): Manifest {
  const text = execFileSync("tar", ["-xzOf", archive, "package/package.json"], { encoding: "utf8" });
  return JSON.parse(text) as Manifest;
}

function documentOf(archive: string, tarball: string) {
  const manifest = manifestOf(archive);
  const integrity = `sha512-${createHash("sha512").update(readFileSync(archive)).digest("base64")}`;
  return {
    name: manifest.name,
    "dist-tags": { latest: manifest.version },
    versions: { [manifest.version]: { ...manifest, dist: { tarball, integrity } } },
  };
}
