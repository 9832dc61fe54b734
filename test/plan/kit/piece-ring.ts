import type { ProgramBucket, ReadProgram } from "./program-reader.ts";

/**
 * The pool of reduced pieces of one rank: places are given out in the order of the table, in a ring of `poolBytes` in
 * which no piece wraps around the end, and given back in the same order once the readers of a piece are done.
 */
export class PieceRing {
  readonly #program: ReadProgram;
  readonly #unread: number[];
  /** Where each placed piece begins, on an endless line. */
  readonly #begins: number[] = [];
  #end = 0;
  #oldest = 0;

  constructor(program: ReadProgram) {
    this.#program = program;
    this.#unread = program.pieces.map(({ readers }) => readers);
  }

  /** Pieces that a bucket begins to fold, if there is room for all of them, in their order. */
  hasRoom(bucket: ProgramBucket): boolean {
    let end = this.#end;
    let next = this.#begins.length;
    const kept = this.#begins[this.#oldest];
    for (const piece of firstContributions(bucket)) {
      if (piece !== next++) return false;
      const begin = this.#placeAfter(end, piece);
      end = begin + this.#program.pieces[piece]!.poolBytes;
      if (end - (kept ?? this.#placeAfter(this.#end, this.#begins.length)) > this.#program.poolBytes)
        return false;
    }
    return true;
  }

  place(bucket: ProgramBucket): void {
    for (const piece of firstContributions(bucket)) {
      const begin = this.#placeAfter(this.#end, piece);
      this.#begins.push(begin);
      this.#end = begin + this.#program.pieces[piece]!.poolBytes;
    }
  }

  read(piece: number): void {
    this.#unread[piece]!--;
    while (this.#oldest < this.#begins.length && this.#unread[this.#oldest] === 0) this.#oldest++;
  }

  #placeAfter(end: number, piece: number): number {
    const { poolBytes } = this.#program;
    const rest = poolBytes - (end % poolBytes);
    return this.#program.pieces[piece]!.poolBytes > rest ? end + rest : end;
  }
}

function firstContributions({ chunks }: ProgramBucket): number[] {
  return chunks.flatMap(({ reduce, position, destination }) =>
    reduce && position === 0 && destination.kind === "piece" ? [destination.piece] : [],
  );
}
