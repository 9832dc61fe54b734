import { lookup } from "node:dns/promises";
import { BlockList, isIP } from "node:net";
import { TensorBusError } from "../errors.ts";

export interface EndpointOptions {
  /** The address or name to listen on; default `127.0.0.1`. Beyond loopback a secret is needed (`TB_AUTH`). */
  readonly host?: string;
  /**
   * What others connect to, if that is not `host` and the port that is listened on: an address or a name, or either
   * with a port (`node7:9000`, `[fd00::7]:9000`). Needed if `host` is `0.0.0.0` or `::`.
   */
  readonly advertise?: string;
}

interface Endpoint {
  /** The numeric address to listen on. */
  readonly listenHost: string;
  /** True if only processes of this host can reach it. */
  readonly loopback: boolean;
  /** The address that others connect to; without a port, the one that is listened on. */
  readonly advertised: { readonly host: string; readonly port?: number };
}

const loopbackAddresses = new BlockList();
loopbackAddresses.addSubnet("127.0.0.0", 8, "ipv4");
loopbackAddresses.addAddress("::1", "ipv6");
const anyAddresses = new BlockList();
anyAddresses.addAddress("0.0.0.0", "ipv4");
anyAddresses.addAddress("::", "ipv6");

/** Says where a session listens, and what it tells others. `TB_ADDRESS` if no other rank could be told how to get there. */
export async function resolveEndpoint(options: EndpointOptions): Promise<Endpoint> {
  const { host = "127.0.0.1", advertise } = options;
  const listenHost = isIP(host) === 0 ? await lookUp(host) : host;
  const family = isIP(listenHost) === 6 ? "ipv6" : "ipv4";
  if (advertise === undefined && anyAddresses.check(listenHost, family)) {
    throw new TensorBusError(
      "TB_ADDRESS",
      `listening on ${listenHost}, all addresses of this host, needs one that others connect to: give advertise (--advertise)`,
      { details: { host } },
    );
  }
  const loopback = loopbackAddresses.check(listenHost, family);
  return { listenHost, loopback, advertised: parseAdvertised(advertise ?? listenHost) };
}

/** `host`, `host:port` or `[host]:port`; a bare IPv6 address has colons of its own. */
function parseAdvertised(text: string): Endpoint["advertised"] {
  if (isIP(text) !== 0) return { host: text };
  const match = /^(?:\[([^\]]+)\]|([^:[\]]+))(?::(\d{1,5}))?$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = match?.[3] === undefined ? undefined : Number(match[3]);
  if (host === undefined || port === 0 || (port ?? 0) > 65_535) {
    throw new TensorBusError(
      "TB_ADDRESS",
      `advertise must be an address or a name, with or without a port, not "${text}"`,
      { details: { advertise: text } },
    );
  }
  return port === undefined ? { host } : { host, port };
}

async function lookUp(host: string): Promise<string> {
  try {
    return (await lookup(host)).address;
  } catch (cause) {
    const message = `the name ${host} to listen on cannot be resolved on this machine (${(cause as Error).message}): check it, or give an address`;
    throw new TensorBusError("TB_ADDRESS", message, { details: { host }, cause });
  }
}
