/**
 * LMDB's transaction to read, begun and ended by hand. The package's own is ended by a timer, a new one for each time that it
 * is begun, and what a client waits for is read in microseconds: the timers cost it more than the reading.
 */
// @ts-expect-error: exported, but missing from the package's types.
import { nativeAddon } from "lmdb";

/** What of LMDB's transaction is called here, and by the package. */
export interface NativeTransaction {
  readonly address: number;
  renew(): void;
  abort(): void;
  done(): void;
}

interface NativeLmdb {
  readonly Txn: new (env: unknown, flags: number) => NativeTransaction;
  resetTxn(address: number): void;
}

const native: NativeLmdb = nativeAddon;
const readOnly = 0x20000;

/** Holds a place in the table of readers until it is closed; between `end` and `begin` it keeps no page from being used again. */
export class ReadTransaction {
  readonly #env: unknown;
  #transaction: NativeTransaction | undefined;

  /** `root`: the package's database. */
  constructor(root: object) {
    this.#env = (root as { readonly env: unknown }).env;
  }

  /** What is read with the options that it gives, until `end`, is what was committed last before this. */
  begin(): { readonly transaction: NativeTransaction } {
    if (this.#transaction === undefined) this.#transaction = new native.Txn(this.#env, readOnly);
    else this.#transaction.renew();
    return { transaction: this.#transaction };
  }

  end(): void {
    native.resetTxn(this.#transaction!.address);
  }

  /** Before the database is closed. */
  close(): void {
    this.#transaction?.abort();
    this.#transaction = undefined;
  }
}
