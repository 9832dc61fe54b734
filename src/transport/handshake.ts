import { createHmac, timingSafeEqual } from "node:crypto";

/** The part that a side has in a connection; the number is the first byte of what it proves. */
export type HandshakeRole = 0 | 1;

/** The messages of both sides of a connection before either is believed. */
interface Hellos {
  readonly connecting: Uint8Array;
  readonly accepting: Uint8Array;
}

/**
 * HMAC-SHA-256 over the prover's role and both hellos, which hold the nonces, ranks, namespace, generation and version
 * of the two sides: a proof fits one side of one connection only.
 */
export function makeProof(secret: Uint8Array, prover: HandshakeRole, hellos: Hellos): Buffer {
  return createHmac("sha256", secret)
    .update(Uint8Array.of(prover))
    .update(hellos.connecting)
    .update(hellos.accepting)
    .digest();
}

/** True if one of the secrets made the proof. Takes the same time whichever it was, and however much is wrong. */
export function checkProof(
  secrets: readonly Uint8Array[],
  prover: HandshakeRole,
  hellos: Hellos,
  proof: Uint8Array,
): boolean {
  return anyOf(secrets, (secret) => makeProof(secret, prover, hellos), proof);
}

/** Compares a code with what each secret makes, all of them, in constant time. */
export function anyOf(
  secrets: readonly Uint8Array[],
  make: (secret: Uint8Array) => Buffer,
  code: Uint8Array,
): boolean {
  let found = false;
  for (const secret of secrets) {
    const expected = make(secret);
    if (code.length === expected.length && timingSafeEqual(code, expected)) found = true;
  }
  return found;
}
