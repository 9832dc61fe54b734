import { extname } from "node:path";
import { type Document, isMap, isNode, isScalar, LineCounter, parseDocument } from "yaml";
import { TensorBusError } from "../errors.ts";
import { formatPath, type SpecPath, type SpecPlaces } from "./spec-places.ts";

const maxAliases = 1000;

/** The text of a spec as values, and where each of them stands. */
export class SpecDocument implements SpecPlaces {
  readonly file: string;
  readonly value: unknown;
  readonly #document: Document.Parsed;
  readonly #lines: LineCounter;

  /** `TB_SPEC` for what is no YAML (of which JSON is a part), a key that stands twice, or several documents. */
  constructor(text: string, file: string) {
    this.file = file;
    this.#lines = new LineCounter();
    this.#document = parseDocument(text, { lineCounter: this.#lines, prettyErrors: false, uniqueKeys: true });
    const error = this.#document.errors[0];
    if (error !== undefined) {
      const language = extname(file) === ".json" ? "JSON" : "YAML";
      throw new TensorBusError(
        "TB_SPEC",
        `${file}:${this.#lineAt(error.pos[0])}: not valid ${language}: ${error.message}`,
        {
          details: { file, line: this.#lineAt(error.pos[0]) },
          cause: error,
        },
      );
    }
    try {
      this.value = this.#document.toJS({ maxAliasCount: maxAliases });
    } catch (cause) {
      throw new TensorBusError("TB_SPEC", `${file}: ${(cause as Error).message}`, {
        details: { file },
        cause,
      });
    }
  }

  /** `TB_SPEC` that names the file, the line, the path and the values. */
  error(
    path: SpecPath,
    what: string,
    details: Readonly<Record<string, unknown>> = {},
    cause?: unknown,
  ): TensorBusError {
    const line = this.#line(path);
    const where = `${this.file}${line === undefined ? "" : `:${line}`}`;
    const at = path.length === 0 ? "" : `${formatPath(path)}: `;
    return new TensorBusError("TB_SPEC", `${where}: ${at}${what}`, {
      details: { file: this.file, line, path: formatPath(path), ...details },
      cause,
    });
  }

  /** What `make` returns; its errors become errors of this place of the spec. */
  at<T>(path: SpecPath, make: () => T): T {
    try {
      return make();
    } catch (error) {
      if (!(error instanceof TensorBusError) || error.code === "TB_SPEC") throw error;
      throw this.error(path, error.message, { ...error.details, code: error.code }, error);
    }
  }

  /** The line of a value; of the nearest that holds it where the value itself is missing. */
  #line(path: SpecPath): number | undefined {
    for (let length = path.length; length >= 0; length--) {
      const key = length > 0 ? this.#keyOffset(path.slice(0, length)) : undefined;
      const node = length === 0 ? this.#document.contents : this.#document.getIn(path.slice(0, length), true);
      const offset = key ?? (isNode(node) ? node.range?.[0] : undefined);
      if (offset !== undefined) return this.#lineAt(offset);
    }
    return undefined;
  }

  /** Where the key of a value stands: its line is the one that a reader looks for. */
  #keyOffset(path: SpecPath): number | undefined {
    const holder =
      path.length === 1 ? this.#document.contents : this.#document.getIn(path.slice(0, -1), true);
    if (!isMap(holder)) return undefined;
    const pair = holder.items.find(({ key }) => isScalar(key) && key.value === path.at(-1));
    return isScalar(pair?.key) ? pair.key.range?.[0] : undefined;
  }

  #lineAt(offset: number): number {
    return this.#lines.linePos(offset).line;
  }
}
