import { createHmac } from "node:crypto";
import { describe, expect, test } from "vitest";
import { checkProof, makeProof } from "../../src/transport/handshake.ts";

const hellos = { connecting: new Uint8Array(128).fill(1), accepting: new Uint8Array(128).fill(2) };
const [old, fresh] = [Buffer.from("old secret"), Buffer.from("fresh secret")];

describe("handshake", () => {
  test("proves the role and both hellos", () => {
    const text = Buffer.concat([Uint8Array.of(1), hellos.connecting, hellos.accepting]);
    expect(makeProof(old, 1, hellos)).toEqual(createHmac("sha256", old).update(text).digest());
  });

  test("accepts either of two secrets during a rotation, and no other", () => {
    for (const secret of [old, fresh]) {
      expect(checkProof([fresh, old], 0, hellos, makeProof(secret, 0, hellos))).toBe(true);
    }
    expect(checkProof([fresh], 0, hellos, makeProof(old, 0, hellos))).toBe(false);
  });

  test.each([
    ["sent back to its maker", 1, hellos],
    ["of other hellos", 0, { ...hellos, accepting: hellos.connecting }],
  ] as const)("refuses a proof that is %s", (_, role, others) => {
    expect(checkProof([old], role, others, makeProof(old, 0, hellos))).toBe(false);
  });

  test("refuses a proof of another length", () => {
    expect(checkProof([old], 0, hellos, makeProof(old, 0, hellos).subarray(1))).toBe(false);
    expect(checkProof([old], 0, hellos, new Uint8Array(0))).toBe(false);
  });
});
