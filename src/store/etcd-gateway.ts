import { Agent as HttpAgent, request as httpRequest, type IncomingMessage } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { StringDecoder } from "node:string_decoder";
import { TensorBusError } from "../errors.ts";

export interface EtcdTls {
  /** The authority that signs the servers' certificates, PEM; the system's without it. */
  readonly ca?: string | Buffer;
  /** This client's certificate and key, PEM, for servers that ask for one. */
  readonly cert?: string | Buffer;
  readonly key?: string | Buffer;
  /** The name that the certificate must bear, if that is not the endpoint's. */
  readonly servername?: string;
}

interface EtcdGatewayOptions {
  /** `http://host:port` or `https://host:port`, one or several of the same cluster. */
  readonly endpoints: readonly string[];
  readonly auth?: { readonly username: string; readonly password: string };
  readonly tls?: EtcdTls;
  /** Milliseconds that an endpoint may take to answer before another one is asked. */
  readonly silenceMs: number;
}

/** What etcd answers to a request, as JSON; 64-bit numbers are text, bytes base64, zeros and empty lists left out. */
export type EtcdMessage = { readonly [field: string]: unknown };

/** No endpoint answered, or one failed in the middle of a change: whether that was made is not known. */
export class EtcdUnreachable extends Error {
  override readonly name = "EtcdUnreachable";
}

/** An endpoint that did not do what was asked, and never will have. */
class EndpointDown extends Error {
  override readonly name = "EndpointDown";
}

/** The codes of gRPC that etcd answers with. */
const grpc = {
  deadlineExceeded: 4,
  notFound: 5,
  permissionDenied: 7,
  resourceExhausted: 8,
  unavailable: 14,
  unauthenticated: 16,
} as const;

/** An error for a request that etcd refused, with etcd's own words. */
export class EtcdRefusal extends Error {
  override readonly name = "EtcdRefusal";
  readonly code: number;

  constructor(code: number, message: string) {
    super(message);
    this.code = code;
  }
}

/** More than any answer to the requests that are made here; what is longer is no etcd. */
const maxAnswerChars = 64 * 2 ** 20;
const freeSockets = 16;
/** What a socket's system error says when no byte of the request has left. */
const notConnected = new Set([
  "ECONNREFUSED",
  "ENOTFOUND",
  "EAI_AGAIN",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "ENETDOWN",
]);

/**
 * The JSON gateway of etcd v3 (`/v3/...`, HTTP/1.1) at one of several endpoints: the first that works is kept, the next
 * one asked when it fails. Requests that change nothing are asked again there; a change that was under way is not.
 */
export class EtcdGateway {
  readonly #options: EtcdGatewayOptions;
  readonly #agents: { readonly http: HttpAgent; readonly https: HttpsAgent };
  readonly #streams = new Map<AbortController, string>();
  #current = 0;
  #token: Promise<string> | undefined;

  constructor(options: EtcdGatewayOptions) {
    this.#options = options;
    const pool = { keepAlive: true, maxFreeSockets: freeSockets, scheduling: "lifo" } as const;
    this.#agents = { http: new HttpAgent(pool), https: new HttpsAgent({ ...pool, ...options.tls }) };
  }

  /** Streams that are open. */
  get streams(): number {
    return this.#streams.size;
  }

  /** Asks something that may be asked twice. */
  ask(path: string, body: EtcdMessage, signal: AbortSignal): Promise<EtcdMessage> {
    return this.#anywhere(true, (endpoint) => this.#unary(endpoint, path, body, signal), signal);
  }

  /** Changes something, once: `EtcdUnreachable` if it is not known whether it was done. */
  change(path: string, body: EtcdMessage, signal: AbortSignal): Promise<EtcdMessage> {
    return this.#anywhere(false, (endpoint) => this.#unary(endpoint, path, body, signal), signal);
  }

  /**
   * Reads messages until `take` answers true, the signal fires, or the stream breaks (`EtcdUnreachable`). A stream ends
   * as well when its endpoint is given up.
   */
  async stream(
    path: string,
    body: EtcdMessage,
    signal: AbortSignal,
    take: (message: EtcdMessage) => boolean,
  ): Promise<void> {
    const endpoint = this.#endpoint;
    const ending = new AbortController();
    const unfollow = follow(ending, signal);
    this.#streams.set(ending, endpoint);
    try {
      const response = await this.#send(
        endpoint,
        path,
        JSON.stringify(body),
        await this.#authorization(endpoint, signal),
        ending.signal,
      );
      if (response.statusCode !== 200) throw refusal(parse(await readAll(response)));
      for await (const line of lines(response)) {
        const { result, error } = parse(line) as { result?: EtcdMessage; error?: EtcdMessage };
        if (error !== undefined) throw refusal(error);
        if (result !== undefined && take(result)) return;
      }
      throw new EtcdUnreachable(`${endpoint} ended the stream`);
    } catch (error) {
      if (error instanceof EtcdRefusal || error instanceof TensorBusError || signal.aborted) throw error;
      throw new EtcdUnreachable(`the stream from ${endpoint} broke`, { cause: error });
    } finally {
      unfollow();
      this.#streams.delete(ending);
      ending.abort();
    }
  }

  /** Closes idle connections; requests under way end by their signals. */
  close(): void {
    this.#agents.http.destroy();
    this.#agents.https.destroy();
  }

  get #endpoint(): string {
    return this.#options.endpoints[this.#current]!;
  }

  /** Does `act` at the endpoint in use, and at each other one as long as that is right. */
  async #anywhere<T>(
    repeatable: boolean,
    act: (endpoint: string) => Promise<T>,
    signal: AbortSignal,
  ): Promise<T> {
    const failures: string[] = [];
    for (let tries = 0; tries < this.#options.endpoints.length; tries += 1) {
      const endpoint = this.#endpoint;
      try {
        return await act(endpoint);
      } catch (error) {
        if (signal.aborted || error instanceof EtcdRefusal || error instanceof TensorBusError) throw error;
        failures.push(`${endpoint}: ${(error as Error).message}`);
        this.#abandon(endpoint);
        if (!repeatable && !(error instanceof EndpointDown)) {
          throw new EtcdUnreachable(
            `${endpoint} failed in the middle of a change: ${(error as Error).message}`,
            {
              cause: error,
            },
          );
        }
      }
    }
    throw new EtcdUnreachable(failures.join("; "));
  }

  /** Goes on with the next endpoint; what streams from this one has to find another. */
  #abandon(endpoint: string): void {
    if (endpoint !== this.#endpoint) return;
    this.#current = (this.#current + 1) % this.#options.endpoints.length;
    this.#token = undefined;
    for (const [ending, from] of this.#streams) if (from === endpoint) ending.abort();
  }

  async #unary(endpoint: string, path: string, body: EtcdMessage, signal: AbortSignal): Promise<EtcdMessage> {
    const token = await this.#authorization(endpoint, signal);
    try {
      return await this.#post(endpoint, path, body, token, signal);
    } catch (error) {
      // A token that is too old: the request was refused before it was done, and can be made again.
      if (token === undefined || !(error instanceof EtcdRefusal) || error.code !== grpc.unauthenticated)
        throw error;
      this.#token = undefined;
      return await this.#post(endpoint, path, body, await this.#authorization(endpoint, signal), signal);
    }
  }

  #authorization(endpoint: string, signal: AbortSignal): Promise<string | undefined> {
    const { auth } = this.#options;
    if (auth === undefined) return Promise.resolve(undefined);
    this.#token ??= this.#authenticate(endpoint, auth, signal).catch((error: unknown) => {
      this.#token = undefined;
      throw error;
    });
    return this.#token;
  }

  async #authenticate(
    endpoint: string,
    { username, password }: { readonly username: string; readonly password: string },
    signal: AbortSignal,
  ): Promise<string> {
    const body = { name: username, password };
    try {
      const { token } = await this.#post(endpoint, "/v3/auth/authenticate", body, undefined, signal);
      return String(token);
    } catch (error) {
      if (!(error instanceof EtcdRefusal)) throw new EndpointDown((error as Error).message, { cause: error });
      const message = `etcd did not accept the user ${username}: ${error.message}`;
      throw new TensorBusError("TB_AUTH", message, { cause: error, details: { username } });
    }
  }

  async #post(
    endpoint: string,
    path: string,
    body: EtcdMessage,
    token: string | undefined,
    signal: AbortSignal,
  ): Promise<EtcdMessage> {
    const ending = new AbortController();
    const unfollow = follow(ending, signal);
    const silence = setTimeout(() => ending.abort(), this.#options.silenceMs);
    try {
      const response = await this.#send(endpoint, path, JSON.stringify(body), token, ending.signal);
      const answer = parse(await readAll(response));
      if (response.statusCode === 200) return answer;
      throw refusal(answer);
    } catch (error) {
      if (!signal.aborted && ending.signal.aborted)
        throw new Error(`no answer for ${this.#options.silenceMs} ms`);
      throw error;
    } finally {
      clearTimeout(silence);
      unfollow();
    }
  }

  #send(
    endpoint: string,
    path: string,
    body: string,
    token: string | undefined,
    signal: AbortSignal,
  ): Promise<IncomingMessage> {
    const url = new URL(path, endpoint);
    const secure = url.protocol === "https:";
    const headers = {
      "content-type": "application/json",
      "content-length": Buffer.byteLength(body),
      ...(token === undefined ? {} : { authorization: token }),
    };
    return new Promise((resolve, reject) => {
      const agent = secure ? this.#agents.https : this.#agents.http;
      const request = (secure ? httpsRequest : httpRequest)(
        url,
        { method: "POST", agent, headers, signal },
        resolve,
      );
      request.on("error", (error: NodeJS.ErrnoException) => {
        const down = notConnected.has(error.code ?? "");
        reject(down ? new EndpointDown(error.message, { cause: error }) : error);
      });
      request.end(body);
    });
  }
}

/** Ends `ending` with `signal`, also if that has fired already; what it returns lets go of the signal. */
function follow(ending: AbortController, signal: AbortSignal): () => void {
  const end = () => ending.abort();
  if (signal.aborted) end();
  signal.addEventListener("abort", end, { once: true });
  return () => signal.removeEventListener("abort", end);
}

async function readAll(response: IncomingMessage): Promise<string> {
  response.setEncoding("utf8");
  let text = "";
  for await (const chunk of response) {
    text += chunk;
    if (text.length > maxAnswerChars) throw new Error("an answer is too long");
  }
  return text;
}

async function* lines(response: IncomingMessage): AsyncGenerator<string> {
  const decoder = new StringDecoder("utf8");
  let rest = "";
  for await (const chunk of response) {
    const parts = (rest + decoder.write(chunk as Buffer)).split("\n");
    rest = parts.pop()!;
    if (rest.length > maxAnswerChars) throw new Error("a message is too long");
    for (const part of parts) if (part.trim() !== "") yield part;
  }
}

function parse(text: string): EtcdMessage {
  try {
    const message: unknown = JSON.parse(text);
    if (typeof message === "object" && message !== null) return message as EtcdMessage;
  } catch {
    // Said below, with what came instead.
  }
  const message = `the server that answered is not etcd: ${text.slice(0, 80)}`;
  throw new TensorBusError("TB_STORE_PROTOCOL", message, { details: { answer: text.slice(0, 1000) } });
}

/** What an error of etcd means: to be asked elsewhere, the caller's own, or a refusal. */
function refusal(answer: EtcdMessage): Error {
  const code = Number(answer.code ?? answer.grpc_code ?? 0);
  const message = String(answer.message ?? answer.error ?? "no reason");
  const options = { details: { code, message } };
  if (code === grpc.unavailable || code === grpc.deadlineExceeded) return new Error(message);
  // Without a token etcd misses the name, and says so as an invalid argument.
  if (code === grpc.permissionDenied || message.endsWith("user name is empty")) {
    return new TensorBusError("TB_AUTH", `etcd refused: ${message}`, options);
  }
  if (/too large|larger than max/.test(message)) return valueError(message, options);
  if (code === grpc.resourceExhausted) return new TensorBusError("TB_NO_SPACE", `etcd: ${message}`, options);
  return new EtcdRefusal(code, message);
}

function valueError(message: string, options: { details: Record<string, unknown> }): TensorBusError {
  return new TensorBusError("TB_STORE_VALUE", `etcd: ${message}`, options);
}

/** A token that etcd does not accept, a fresh one included. */
export function isUnauthenticated(error: unknown): boolean {
  return error instanceof EtcdRefusal && error.code === grpc.unauthenticated;
}

/** A lease that etcd does not know (any more). */
export function isLeaseGone(error: unknown): boolean {
  return error instanceof EtcdRefusal && error.code === grpc.notFound;
}
