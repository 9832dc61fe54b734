/** What becomes of an agent's connections when its session does not come to rest, or when its store ends while it starts. */
import { describe, expect, it, vi } from "vitest";
import { agentKey } from "../../src/bus/pair/records.ts";
import { Uplink, type UplinkOptions } from "../../src/bus/pair/uplink.ts";
import { TensorBusError } from "../../src/errors.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import type { Transport, TransportSession } from "../../src/transport/transport.ts";
import { memory } from "../../transports/memory/index.ts";
import { failureOf } from "./kit/agent-kit.ts";

function world() {
  const store = memoryStores()();
  const real = memory();
  const sessions: TransportSession[] = [];
  const transport: Transport = {
    ...real,
    open: async (options) => {
      const session = await real.open(options);
      sessions.push(session);
      return session;
    },
  };
  const close = vi.fn(async () => {});
  const options: UplinkOptions = {
    rank: 0,
    world: 1,
    generation: 1n,
    store: () => ({ store, close }),
    transport,
    onTransport: () => {},
    onLost: async () => {},
    onFound: () => {},
  };
  return { store, sessions, close, options };
}

describe("the uplink of an agent", () => {
  it("leaves the store even if its session still has memory in quarantine", async () => {
    const { store, sessions, close, options } = world();
    const uplink = await Uplink.open(options, { timeoutMs: 5000 });
    expect(await store.get(agentKey(0))).toBeDefined();
    const [session] = sessions;
    const closeSession = session!.close.bind(session);
    vi.spyOn(session!, "close").mockImplementation(async () => {
      await closeSession();
      throw new TensorBusError("TB_QUARANTINED", "a peer may still read what was registered");
    });
    expect(await failureOf(uplink.close())).toMatchObject({ code: "TB_QUARANTINED" });
    expect(await store.get(agentKey(0))).toBeUndefined();
    expect(close).toHaveBeenCalledOnce();
  });

  it("closes the session that it has opened if the store ends before the agent has started", async () => {
    const { store, sessions, close, options } = world();
    vi.spyOn(store, "compareAndSet").mockRejectedValue(
      new TensorBusError("TB_STORE_LOST", "the store ended"),
    );
    const failed = await failureOf(Uplink.open(options, { timeoutMs: 5000 }));
    expect(failed).toMatchObject({ code: "TB_STORE_LOST" });
    expect(() => sessions[0]!.register(new Uint8Array(8) as never)).toThrow(
      expect.objectContaining({ code: "TB_CLOSED" }),
    );
    expect(close).toHaveBeenCalledOnce();
  });
});
