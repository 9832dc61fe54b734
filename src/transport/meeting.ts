/** How the ranks of a connected transport meet: where each listens, and what it proves to the others. */
import { checkTuning, type Meeting, type SessionTuning } from "./connected-session.ts";
import { type EndpointOptions, resolveEndpoint } from "./endpoint.ts";
import { integerOption } from "./open-options.ts";
import { loadSecrets, type SecretOptions } from "./secret.ts";

export interface ListenOptions extends SecretOptions, SessionTuning, EndpointOptions {
  /** The port to listen on; default 0, a free one. */
  readonly port?: number;
}

const loopback = "127.0.0.1";

/** Options are checked at once; addresses are resolved and secrets read when ranks are to meet. */
export function meetAt(options: ListenOptions, connections = 1): () => Promise<Meeting> {
  const listenPort = integerOption("port", options.port, { min: 0, max: 65_535, preset: 0 });
  const tuning = checkTuning(options);
  return async () => {
    const { listenHost, loopback: isLocal, advertised } = await resolveEndpoint(options);
    const secrets = await loadSecrets(options, isLocal);
    return { tuning, connections, namespace: options.namespace, listenHost, listenPort, advertised, secrets };
  };
}

/** For transports of one host, whose connections carry no tensors. */
export function meetOnLoopback(options: SecretOptions & SessionTuning): () => Promise<Meeting> {
  const tuning = checkTuning(options);
  return async () => ({
    tuning,
    connections: 1,
    namespace: options.namespace,
    listenHost: loopback,
    listenPort: 0,
    advertised: { host: loopback },
    secrets: await loadSecrets(options, true),
  });
}
