/** When a pair of ranks takes UCX, and what it says where UCX finds no way. */
import { closeSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { carrierBetween, sessionIdentity } from "../../src/ffi/carriers.ts";
import { closeSession, openSession } from "../../src/ffi/session.ts";
import { hasRdmaDevice } from "../../src/ffi/ucx.ts";
import { select } from "../../src/transport/selection.ts";
import { tcp } from "../../transports/tcp/index.ts";
import { ucx } from "../../transports/ucx/index.ts";
import { meet } from "./kit/meet.ts";
import { ucxVersion } from "./kit/ucx.ts";

const local = { transports: "tcp,self" };
const no = "TensorBusError: no way between the two: ";

/** What of UCX a session says in its identity: `facts[TB_FACT_UCX]` of `tb_wire_identity`. */
const saidAt = 68;
const said = { nothing: 0, spoken: 1, rdma: 3 } as const;

function identity(carriers: readonly ("stream" | "ucx")[], ucx: keyof typeof said): Uint8Array {
  const { session, eventDescriptor } = openSession({
    kind: "tcp",
    rank: 0,
    world: 2,
    generation: 0n,
    connections: 1,
    carriers,
    ioThreads: 1,
    peerTimeoutMs: 1000,
    quiesceMs: 1000,
    listenHost: "127.0.0.1",
    listenPort: 0,
    namespace: "",
  });
  const bytes = sessionIdentity(session);
  closeSession(session);
  closeSync(eventDescriptor);
  new DataView(bytes.buffer).setUint32(saidAt, said[ucx], true);
  return bytes;
}

describe("choosing UCX", () => {
  const both = ["stream", "ucx"] as const;
  const host = { memory: "host", checksum: false } as const;
  const between = (one: Uint8Array, other: Uint8Array) => {
    expect(carrierBetween(other, one, host)).toBe(carrierBetween(one, other, host));
    return carrierBetween(one, other, host);
  };

  test("before TCP if both have an RDMA device", () => {
    expect(between(identity(both, "rdma"), identity(both, "rdma"))).toBe("ucx");
    expect(between(identity(both, "rdma"), identity(both, "spoken"))).toBe("stream");
    expect(between(identity(both, "spoken"), identity(both, "spoken"))).toBe("stream");
    expect(between(identity(both, "rdma"), identity(both, "nothing"))).toBe("stream");
    expect(between(identity(both, "rdma"), identity(["stream"], "nothing"))).toBe("stream");
  });

  test("whatever devices there are, if one of the two has nothing else", () => {
    expect(between(identity(both, "spoken"), identity(["ucx"], "spoken"))).toBe("ucx");
    expect(() => between(identity(["ucx"], "spoken"), identity(["stream"], "nothing"))).toThrow(
      "ucx: one of the two does not use it",
    );
    expect(() => between(identity(["ucx"], "spoken"), identity(["ucx"], "nothing"))).toThrow(
      "ucx: one of the two has no UCX",
    );
  });

  test("not for checksums", () => {
    const one = identity(both, "rdma");
    expect(carrierBetween(one, one, { ...host, checksum: true })).toBe("stream");
  });
});

describe.skipIf(ucxVersion === undefined || hasRdmaDevice())("pairs without an RDMA device", () => {
  const either = () => select([ucx(local), tcp()]);

  test("take TCP, unless one of them is told to take UCX", async () => {
    expect(await meet([either(), either()])).toEqual(["tcp", "tcp"]);
    expect(await meet([either(), ucx(local)])).toEqual(["ucx", "ucx"]);
    const forced = () => select([ucx(local), tcp()], { force: "ucx" });
    expect(await meet([forced(), forced()])).toEqual(["ucx", "ucx"]);
  });

  test("say why there is no way", async () => {
    const lacks = `${no}ucx: one of the two does not use it; stream: one of the two does not use it`;
    const forced = (force: "ucx" | "tcp") => select([ucx(local), tcp()], { force });
    expect(await meet([forced("ucx"), forced("tcp")])).toEqual([lacks, lacks]);
    const alone = () => ucx({ transports: "self" });
    const said = await meet([alone(), alone()]);
    expect(said[1]).toMatch(/UCX has no transport between this rank and rank 0 .*: .* \(-6\)/);
    expect(said[0]).toBe(said[1]);
  });
});
