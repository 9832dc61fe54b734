/** What of LMDB's files is looked at in every transaction, without a call: words of maps that the native library guards. */
import { viewOf } from "../../ffi/view.ts";

const magic = 0xbeefc0de;
/** Words of a meta page: its magic, and both words of where each of its two trees begins (`tb_lmdb_meta`). */
const words = { magic: 6, freeRoot: 22, mainRoot: 34 } as const;

/** What `tb_gate_guard` gives. */
type GuardedAddresses = readonly [lost: bigint, metas: bigint, pageBytes: number];

/** One for all environments of this thread. */
let lostPages: Uint32Array | undefined;

/** Good until the gate is closed. */
export class LmdbViews {
  readonly #lost: Uint32Array;
  readonly #metas: Uint32Array;
  readonly #pageWords: number;

  constructor([lost, metas, pageBytes]: GuardedAddresses) {
    lostPages ??= new Uint32Array(viewOf(lost, 4, () => {}));
    this.#lost = lostPages;
    this.#metas = new Uint32Array(viewOf(metas, 2 * pageBytes, () => {}));
    this.#pageWords = pageBytes / 4;
  }

  /** Pages of maps that were missing in this process so far. */
  get lostPages(): number {
    return this.#lost[0]!;
  }

  /** True if the meta pages are some. LMDB takes where its trees begin from one, and goes there without a look. */
  get haveTrees(): boolean {
    return this.#isMeta(0) && this.#isMeta(this.#pageWords);
  }

  #isMeta(at: number): boolean {
    const metas = this.#metas;
    return (
      metas[at + words.magic] === magic &&
      (metas[at + words.freeRoot]! | metas[at + words.freeRoot + 1]!) !== 0 &&
      (metas[at + words.mainRoot]! | metas[at + words.mainRoot + 1]!) !== 0
    );
  }
}
