import { readFileSync } from "node:fs";
import { isIPv4 } from "node:net";
import { TensorBusError } from "../errors.ts";
import { defaultNamespace } from "./checks.ts";
import type { EtcdStoreOptions } from "./etcd-store.ts";
import { type SignedStoreOptions, signedStore } from "./signed.ts";
import type { Store, StoreCallOptions } from "./store.ts";
import { serveTcpStore, type TcpStoreServer, type TcpStoreServerOptions } from "./tcp-server.ts";
import { tcpStore } from "./tcp-store.ts";

type Environment = Readonly<Record<string, string | undefined>>;

export interface OpenStoreOptions extends StoreCallOptions {
  /** Default `TENSOR_BUS_NAMESPACE`, else `tensorbus`. */
  readonly namespace?: string;
  /**
   * Signs and checks every record with these (`signedStore`). Default: the lines of `TENSOR_BUS_SECRET` or of the file
   * `TENSOR_BUS_SECRET_FILE`, the first signs; with neither, records are not signed. An empty list: not signed.
   */
  readonly secrets?: readonly Uint8Array[];
  readonly generation?: bigint;
  readonly onIgnored?: SignedStoreOptions["onIgnored"];
  /**
   * This process serves the store that it then uses (`tcp` only): rank 0's, usually. Default: whether the URL says
   * `?serve`. It listens on the URL's host, or where this says otherwise.
   */
  readonly serve?: boolean | TcpStoreServerOptions;
  /** Options of etcd that a URL has no place for. */
  readonly etcd?: Pick<EtcdStoreOptions, "auth" | "tls" | "leaseSeconds" | "silenceMs" | "maxValueBytes">;
  /** The environment that the defaults come from; default `process.env`. */
  readonly env?: Environment;
}

/** A store and, if this process serves it, its server. Closing it closes both. */
export interface OpenedStore extends AsyncDisposable {
  readonly store: Store;
  readonly server: TcpStoreServer | undefined;
  close(): Promise<void>;
}

/**
 * Opens the store that a URL names: `tcp://host:port` (with `?serve`: and serves it here), `etcd://host:port[,host:port]`,
 * or `etcds://…` over TLS. Without a URL it is `TENSOR_BUS_STORE`. `TB_STORE_OPTIONS` for a URL or a secret that is
 * malformed, and for serving beyond loopback without a secret; else what `tcpStore`, `etcdStore` and `serveTcpStore` fail with.
 */
export async function openStore(url?: string, options: OpenStoreOptions = {}): Promise<OpenedStore> {
  const env = options.env ?? process.env;
  const address = parseStoreUrl(url ?? env.TENSOR_BUS_STORE ?? "");
  const namespace = options.namespace ?? env.TENSOR_BUS_NAMESPACE ?? defaultNamespace;
  const secrets = options.secrets ?? secretsFrom(env);
  const serve = options.serve ?? address.serve;
  if (serve !== false && secrets.length === 0) refuseForeign(address, serve);
  const server = serve === false ? undefined : await serveAt(address, serve);
  try {
    const plain = await connect(address, namespace, options, server);
    const { generation, onIgnored } = options;
    const signing = {
      secrets,
      ...(generation === undefined ? {} : { generation }),
      ...(onIgnored && { onIgnored }),
    };
    const store = secrets.length === 0 ? plain : await signed(plain, signing);
    const close = async () => {
      await store.close();
      await server?.close();
    };
    return { store, server, close, [Symbol.asyncDispose]: close };
  } catch (error) {
    await server?.close();
    throw error;
  }
}

interface StoreAddress {
  readonly kind: "tcp" | "etcd" | "etcds";
  readonly hosts: readonly { readonly host: string; readonly port: number }[];
  readonly serve: boolean;
}

const usage = "a store's URL is tcp://host:port[?serve] or etcd://host:port[,host:port…]";

function parseStoreUrl(url: string): StoreAddress {
  const match = /^(tcp|etcds?):\/\/([^/?#@]+)\/?(\?serve)?$/.exec(url);
  const kind = match?.[1] as StoreAddress["kind"] | undefined;
  const hosts = match?.[2]?.split(",").map(parseHost) ?? [];
  const serve = match?.[3] !== undefined;
  const fits = kind === "tcp" ? hosts.length === 1 : kind !== undefined && !serve;
  if (kind !== undefined && fits && !hosts.includes(undefined)) {
    return { kind, hosts: hosts as StoreAddress["hosts"], serve };
  }
  // The URL itself may hold a password that someone put there, and is not repeated.
  const hint = url.includes("@")
    ? "; leave user and password out of it"
    : url === ""
      ? "; none was given"
      : "";
  throw new TensorBusError("TB_STORE_OPTIONS", usage + hint);
}

function parseHost(text: string): { host: string; port: number } | undefined {
  const match = /^(?:\[([0-9a-fA-F:.%]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (match === null || port > 65_535) return undefined;
  return { host: (match[1] ?? match[2])!, port };
}

/** Without a secret nobody's records can be told from a stranger's: then strangers must not come in. */
function refuseForeign({ hosts }: StoreAddress, serve: true | TcpStoreServerOptions): void {
  const host = (serve === true ? undefined : serve.host) ?? hosts[0]!.host;
  if (isLoopback(host)) return;
  throw new TensorBusError(
    "TB_STORE_OPTIONS",
    `a store that listens on ${host} needs a secret: set TENSOR_BUS_SECRET_FILE or TENSOR_BUS_SECRET`,
    { details: { host } },
  );
}

function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || (isIPv4(host) && host.startsWith("127."));
}

function serveAt(
  { kind, hosts }: StoreAddress,
  serve: true | TcpStoreServerOptions,
): Promise<TcpStoreServer> {
  if (kind !== "tcp") throw new TensorBusError("TB_STORE_OPTIONS", "only a tcp:// store can be served");
  return serveTcpStore({ ...hosts[0]!, ...(serve === true ? {} : serve) });
}

async function connect(
  { kind, hosts }: StoreAddress,
  namespace: string,
  options: OpenStoreOptions,
  server: TcpStoreServer | undefined,
): Promise<Store> {
  const { signal, timeoutMs } = options;
  const call = {
    ...(signal === undefined ? {} : { signal }),
    ...(timeoutMs === undefined ? {} : { timeoutMs }),
  };
  if (kind === "tcp") {
    const port = server?.port ?? hosts[0]!.port;
    return tcpStore({ ...call, namespace, host: hosts[0]!.host, port });
  }
  const scheme = kind === "etcds" ? "https" : "http";
  const endpoints = hosts.map(
    ({ host, port }) => `${scheme}://${host.includes(":") ? `[${host}]` : host}:${port}`,
  );
  const { etcdStore } = await import("./etcd-store.ts");
  return etcdStore({ ...options.etcd, ...call, namespace, endpoints });
}

async function signed(store: Store, options: SignedStoreOptions): Promise<Store> {
  try {
    return signedStore(store, options);
  } catch (error) {
    await store.close();
    throw error;
  }
}

/** One secret a line; white space around it does not count. */
function secretsFrom(env: Environment): Uint8Array[] {
  const file = env.TENSOR_BUS_SECRET_FILE;
  const text = env.TENSOR_BUS_SECRET ?? (file === undefined ? undefined : readSecretFile(file));
  if (text === undefined) return [];
  const lines = text.split("\n").map((line) => line.trim());
  const secrets = lines.filter((line) => line !== "").map((line) => Buffer.from(line));
  // A secret that was meant to be there, and is empty, must not mean that nothing is signed.
  if (secrets.length === 0)
    throw new TensorBusError("TB_STORE_OPTIONS", "the secret that was given is empty");
  return secrets;
}

function readSecretFile(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (cause) {
    throw new TensorBusError("TB_FILE", `the secret's file cannot be read: ${(cause as Error).message}`, {
      cause,
      details: { file },
    });
  }
}
