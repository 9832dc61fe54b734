/**
 * What goes over an agent's socket: frames of a length (u32, little-endian) and one MessagePack map. The page
 * `docs/client-protocol.md` is enough to write a client from; what it says is checked against these.
 */
import * as z from "zod";
import { type ErrorCode, TensorBusError } from "../../errors.ts";
import { commandTypes } from "../queue/command-header.ts";
import { maxCommandBytes, pack, unpack } from "../queue/commands.ts";
import { portable } from "../queue/state.ts";
import { exactIntegers, plainIntegers } from "./integers.ts";

/** Versions of the protocol that this agent speaks. */
const protocolVersions = { min: 1, max: 1 } as const;

export const doorLimits = {
  /** Clients at a time. */
  connections: 256,
  /** Bytes of a frame from who has not said hello. */
  helloBytes: 4096,
  /** Bytes of a frame after that: a command, and what stands around it. */
  frameBytes: maxCommandBytes + 4096,
  /** Bytes of frames that have begun and not ended, of all clients together. */
  unfinishedBytes: 4 * maxCommandBytes,
  /** Milliseconds from the connection to the end of the hello. */
  handshakeMs: 5000,
  /** Milliseconds from a frame's first byte to its last. */
  frameMs: 30_000,
  /** Commands of one client that are not answered. */
  commands: 1024,
  /** Bytes of answers that a client has not read. */
  unreadBytes: 2 * maxCommandBytes,
  /** Hand-overs of descriptors that one command names. */
  handOvers: 16,
} as const;
export type DoorLimits = { readonly [name in keyof typeof doorLimits]: number };

const lengthBytes = 4;
/** Pieces of a frame are joined up to this size as they come: a client may send single bytes, and each takes an object. */
const joinBytes = 64 * 1024;

const helloSchema = z.object({
  type: z.literal("hello"),
  /** The oldest and the newest version that the client speaks. */
  protocol: z.tuple([z.int().min(1), z.int().min(1)]),
  /** For people: what the client is. */
  client: z.string().max(256).optional(),
  pid: z.int().min(0).optional(),
});
type Hello = z.infer<typeof helloSchema>;

/** What a frame of a command says beside its body. */
const commandSchema = z.object({
  type: z.enum([...commandTypes, "Lend"]),
  /** The client's own number of it; rises with each of its commands. */
  id: z.int().min(0),
  /** Milliseconds that are left of its deadline. */
  timeoutMs: z
    .number()
    .min(0)
    .max(2 ** 31 - 1),
  /** The client's name in logs. */
  name: z
    .string()
    .max(255)
    .regex(/^\/[^/]+$/)
    .optional(),
  /** When it was made: milliseconds since 1970, for people. */
  timestamp: z.number().optional(),
  /** The first number of its hand-overs of descriptors, and how many there are. */
  handOvers: z.tuple([z.int().min(0), z.int().min(1).max(doorLimits.handOvers)]).optional(),
  body: z.record(z.string(), z.unknown()).optional(),
});
export type CommandFrame = z.infer<typeof commandSchema>;

export type AgentFrame =
  | {
      readonly type: "welcome";
      readonly protocol: number;
      readonly agent: string;
      readonly rank: number;
      readonly sides: Readonly<Record<string, readonly number[]>>;
      readonly generation: bigint;
      readonly pid: number;
      /** What the client's socket for descriptors begins with. */
      readonly secret: Uint8Array;
      readonly limits: {
        readonly frameBytes: number;
        readonly commands: number;
        readonly descriptors: number;
      };
    }
  | { readonly type: "answer"; readonly id: number; readonly ok: true; readonly value: unknown }
  | { readonly type: "answer"; readonly id: number; readonly ok: false; readonly error: TensorBusError }
  /** The last frame before the agent closes the connection. */
  | { readonly type: "refused"; readonly error: TensorBusError }
  | { readonly type: "draining" }
  | { readonly type: "batchEnded"; readonly batch: unknown; readonly error: TensorBusError };

function malformed(what: string, path: string, message: string): TensorBusError {
  return new TensorBusError("TB_COMMAND", `${what}: ${path}: ${message}`, { details: { path } });
}

function check<T>(schema: z.ZodType<T>, what: string, value: unknown): T {
  const { success, data, error } = schema.safeParse(value);
  if (success) return data;
  const issue = error.issues[0];
  throw malformed(what, issue?.path.join(".") || "it", issue?.message ?? "is wrong");
}

/** Reads the first frame of a client. `TB_COMMAND` if it is malformed, `TB_VERSION` if no version is common. */
export function readHello(bytes: Uint8Array): { readonly hello: Hello; readonly protocol: number } {
  const hello = check(helloSchema, "a hello", plainIntegers(unpack(bytes)));
  const { min, max } = protocolVersions;
  const [oldest, newest] = hello.protocol;
  const protocol = Math.min(newest, max);
  if (protocol >= Math.max(oldest, min)) return { hello, protocol };
  const message = `the client speaks protocol ${oldest} to ${newest}, this agent ${min} to ${max}`;
  throw new TensorBusError("TB_VERSION", message, {
    details: { client: [oldest, newest], agent: [min, max] },
  });
}

/** A frame of a client that has been welcomed; its body is not checked yet. `TB_COMMAND` if the frame is malformed. */
export function readCommand(bytes: Uint8Array): CommandFrame {
  const message = unpack(bytes);
  if (typeof message !== "object" || message === null) throw malformed("a frame", "it", "is not a map");
  // The body's integers are told by the command's own schema.
  const { body, ...rest } = message as Record<string, unknown>;
  const head = plainIntegers(rest) as Record<string, unknown>;
  return check(commandSchema, "a frame", body === undefined ? head : { ...head, body });
}

/** The number of a command in a malformed frame, so that it can be answered. */
export function numberOf(bytes: Uint8Array): number | undefined {
  try {
    const { id } = plainIntegers(unpack(bytes)) as { id?: unknown };
    return Number.isSafeInteger(id) ? (id as number) : undefined;
  } catch {
    return undefined;
  }
}

interface ErrorMessage {
  readonly code: ErrorCode;
  readonly message: string;
  readonly details: unknown;
}

function errorMessage({ code, message, details }: TensorBusError): ErrorMessage {
  return { code, message, details: exactIntegers(portable(details)) };
}

export function encodeFrame(frame: AgentFrame): Buffer {
  const message = "error" in frame ? { ...frame, error: errorMessage(frame.error) } : exactIntegers(frame);
  const body = pack(message);
  const bytes = Buffer.allocUnsafe(lengthBytes + body.length);
  bytes.writeUInt32LE(body.length, 0);
  body.copy(bytes, lengthBytes);
  return bytes;
}

/** Cuts what comes into frames. What is unfinished is counted; the caller bounds it. */
export class FrameReader {
  #chunks: Buffer[] = [];
  #bytes = 0;
  /** Bytes of the frame that is coming, its length included; 0 if that is not known. */
  #wanted = 0;

  /** Bytes that came and belong to no whole frame yet. */
  get unfinishedBytes(): number {
    return this.#bytes;
  }

  /**
   * The bodies of the frames that are whole with this chunk. `TB_COMMAND` for one of more than `maxBytes`, which is asked
   * before each frame.
   */
  *push(chunk: Buffer, maxBytes: () => number): Generator<Buffer> {
    this.#append(chunk);
    for (;;) {
      if (this.#wanted === 0) {
        if (this.#bytes < lengthBytes) return;
        const length = this.#join().readUInt32LE(0);
        const max = maxBytes();
        if (length > max) {
          throw new TensorBusError(
            "TB_COMMAND",
            `a frame has ${length} bytes, and at most ${max} are allowed`,
            {
              details: { bytes: length, max },
            },
          );
        }
        this.#wanted = lengthBytes + length;
      }
      if (this.#bytes < this.#wanted) return;
      const all = this.#join();
      const frame = all.subarray(lengthBytes, this.#wanted);
      this.#chunks = [all.subarray(this.#wanted)];
      this.#bytes -= this.#wanted;
      this.#wanted = 0;
      yield frame;
    }
  }

  /** A piece is joined with one before it that is no larger, so that each byte is copied a few times at most. */
  #append(chunk: Buffer): void {
    let last = chunk;
    for (let before = this.#chunks.at(-1); before !== undefined; before = this.#chunks.at(-1)) {
      if (before.length > last.length || before.length + last.length > joinBytes) break;
      last = Buffer.concat([before, last]);
      this.#chunks.pop();
    }
    this.#chunks.push(last);
    this.#bytes += chunk.length;
  }

  /** In how many pieces the unfinished frame is held. */
  get pieces(): number {
    return this.#chunks.length;
  }

  #join(): Buffer {
    if (this.#chunks.length !== 1) this.#chunks = [Buffer.concat(this.#chunks)];
    return this.#chunks[0]!;
  }
}
