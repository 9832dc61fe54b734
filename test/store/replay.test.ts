/** Recorded exchanges with the real torch, replayed everywhere: byte for byte, whichever way the bytes are cut. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { serveTcpStore } from "../../src/store/tcp-server.ts";
import { type Exchange, playClients, ReplayServer } from "./kit/exchange.ts";
import { everyOperation } from "./kit/scenario.ts";

const golden = (name: string) =>
  JSON.parse(readFileSync(join(import.meta.dirname, "../golden/tcpstore", name), "utf8")) as Exchange;
const torchClient = golden("torch-client.json");
const ourClient = golden("tensorbus-client.json");

describe("exchanges recorded with torch", () => {
  it.each([
    ["torch's client", torchClient, 1],
    ["torch's client", torchClient, 7],
    ["torch's client", torchClient, 1 << 20],
    ["our client", ourClient, 3],
  ])("our server answers %s as torch's did (%#)", async (_, exchange, pieceBytes) => {
    await using server = await serveTcpStore();
    expect(await playClients(exchange, server.port, pieceBytes)).toEqual(exchange.connections);
  });

  it("holds every opcode of torch's client", () => {
    const sent = torchClient.connections.flat().filter(([end]) => end === ">");
    const opcodes = new Set(sent.map(([, hex]) => Number.parseInt(hex.slice(0, 2), 16)));
    expect(torchClient.results!.length).toBeGreaterThan(40);
    // Those without an answer share a turn with what follows them.
    for (const opcode of [0, 2, 4, 5, 6, 7, 8, 10, 15, 16, 17, 18]) expect(opcodes).toContain(opcode);
  });

  it("our client says to torch's server what it said, and understands it", async () => {
    await using server = await ReplayServer.of(ourClient);
    const results = await everyOperation(server.port);
    const sent = ourClient.connections.flat().filter(([end]) => end === ">");
    expect(server.differences).toEqual([]);
    expect(server.heardBytes).toBe(sent.reduce((bytes, [, hex]) => bytes + hex.length / 2, 0));
    const value = (text: string) => Buffer.from(text);
    expect(results).toEqual([
      undefined,
      undefined,
      value("value"),
      { swapped: false, stored: undefined },
      { swapped: true, stored: value("first") },
      { swapped: false, stored: value("first") },
      { swapped: true, stored: value("second") },
      7n,
      -2n,
      "TB_STORE_VALUE",
      undefined,
      "TB_TIMEOUT",
      undefined,
      undefined,
      true,
      false,
    ]);
  });
});
