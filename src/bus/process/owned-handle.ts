import { TensorBusError } from "../../errors.ts";

/** A handle of native code that this object owns: it is freed once, by hand or at the end of a scope. */
export class OwnedHandle implements Disposable {
  readonly #what: string;
  readonly #free: (handle: bigint) => unknown;
  #handle: bigint | undefined;

  /** `what` names it in messages. */
  constructor(what: string, handle: bigint, free: (handle: bigint) => unknown) {
    this.#what = what;
    this.#handle = handle;
    this.#free = free;
  }

  /** `TB_CLOSED` once it was freed. */
  protected get handle(): bigint {
    if (this.#handle === undefined) throw new TensorBusError("TB_CLOSED", `${this.#what} was closed`);
    return this.#handle;
  }

  /** Frees it; a second call does nothing. */
  close(): void {
    const handle = this.#handle;
    this.#handle = undefined;
    if (handle !== undefined) this.#free(handle);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
