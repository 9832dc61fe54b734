/** Requests of the wire protocol, written by hand: what the product's own encoder would not send. */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { opcodes } from "../../../src/store/tcp-protocol.ts";

export const validate = Buffer.from("00cef7853c", "hex");

export function number(value: bigint | number): Buffer {
  const buffer = Buffer.alloc(8);
  buffer.writeBigInt64LE(BigInt(value));
  return buffer;
}

/** A string or a payload. */
export function counted(text: string | Uint8Array): Buffer {
  const bytes = typeof text === "string" ? Buffer.from(text, "latin1") : text;
  return Buffer.concat([number(bytes.length), bytes]);
}

export function request(operation: keyof typeof opcodes, ...fields: readonly Uint8Array[]): Buffer {
  return Buffer.concat([Buffer.of(opcodes[operation]), ...fields]);
}

export function list(keys: readonly string[]): Buffer {
  return Buffer.concat([number(keys.length), ...keys.map(counted)]);
}

export function ping(nonce: number): Buffer {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32LE(nonce);
  return request("ping", buffer);
}

export async function dial(port: number, first: Uint8Array = validate): Promise<Socket> {
  const socket = connect({ port, host: "127.0.0.1", noDelay: true });
  await once(socket, "connect");
  socket.on("error", () => {});
  if (first.length > 0) socket.write(first);
  return socket;
}

/**
 * Sends requests on a connection of their own, a PING behind them, and answers what came before its echo; `undefined` if
 * the server closed the connection over them.
 */
export async function converse(
  port: number,
  ...requests: readonly Uint8Array[]
): Promise<Buffer | undefined> {
  const socket = await dial(port);
  const end = ping(0x5eed5eed);
  socket.write(Buffer.concat([...requests, end]));
  let heard = Buffer.alloc(0);
  const echo = end.subarray(1);
  try {
    for await (const chunk of socket) {
      heard = Buffer.concat([heard, chunk as Buffer]);
      if (heard.subarray(-4).equals(echo)) {
        socket.destroy();
        return heard.subarray(0, -4);
      }
    }
  } catch {
    // A connection that is closed over unread bytes ends with a reset.
  }
  return undefined;
}

/** Resolves when a connection is gone, however it ended. */
export function gone(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    if (socket.destroyed) resolve();
    else socket.resume().once("close", () => resolve());
  });
}
