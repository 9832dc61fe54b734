/**
 * The seam between tensorbus and a key-value store that two jobs share: the place where ranks that were launched apart
 * find each other. One compliance suite (`test/store/kit/compliance.ts`) holds every implementation to this file.
 */

/** Abilities of a store beyond the members of `Store`. */
export interface StoreCapabilities {
  /** Keys can be bound to a lease and vanish with their writer. */
  readonly lease: boolean;
  /**
   * `swapped` of `compareAndSet` tells apart writers that store the same bytes at the same time. Without it each of
   * them may be told that it swapped: writers that must know who won store bytes of their own (a nonce will do).
   */
  readonly exactSwap: boolean;
  /** The most bytes of a value. */
  readonly maxValueBytes: number;
  /** The most bytes of a key in UTF-8, the namespace's share not counted. */
  readonly maxKeyBytes: number;
}

export interface StoreCallOptions {
  readonly signal?: AbortSignal;
  /** Milliseconds until `TB_TIMEOUT`; default 30,000. */
  readonly timeoutMs?: number;
}

export interface SetOptions extends StoreCallOptions {
  /** Bind the key to this client's lease (`capabilities.lease`; else `TB_UNSUPPORTED`). */
  readonly leased?: boolean;
}

/**
 * Every call can fail with `TB_TIMEOUT`, `TB_CANCELLED`, `TB_STORE_LOST` and, once closed, `TB_CLOSED`. A call that ends
 * so may still take effect. A lost store stays lost: whoever wants to go on connects anew and writes its keys again.
 * Neither keys nor values are empty (`TB_STORE_VALUE`). Keys of another namespace are invisible.
 */
export interface Store extends AsyncDisposable {
  readonly name: string;
  readonly capabilities: StoreCapabilities;
  readonly namespace: string;
  /** The value, or `undefined` if there is none; never waits for it. */
  get(key: string, options?: StoreCallOptions): Promise<Uint8Array | undefined>;
  set(key: string, value: Uint8Array, options?: SetOptions): Promise<void>;
  /**
   * Sets `key` to `desired` if its value is `expected` (`undefined`: if there is none). `stored` is what stands there
   * afterwards. The key stays bound to the lease that it was bound to.
   */
  compareAndSet(
    key: string,
    expected: Uint8Array | undefined,
    desired: Uint8Array,
    options?: StoreCallOptions,
  ): Promise<{ swapped: boolean; stored: Uint8Array | undefined }>;
  /**
   * Adds to a counter, which begins at 0, and answers its new value. The value reads as decimal text; another value, or a
   * sum outside of 64 bits, is `TB_STORE_VALUE`.
   */
  add(key: string, delta: bigint, options?: StoreCallOptions): Promise<bigint>;
  /** Resolves once each of the keys exists, or has existed at some time since the call began. */
  wait(keys: readonly string[], options?: StoreCallOptions): Promise<void>;
  /** True if the key was there. */
  delete(key: string, options?: StoreCallOptions): Promise<boolean>;
  /** Frees what this client holds, its lease included; never the server. A second call does nothing. */
  close(): Promise<void>;
}
