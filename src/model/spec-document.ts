import { extname } from "node:path";
import { Composer, type Document, isMap, isNode, isScalar, Lexer, LineCounter, Parser, visit } from "yaml";
import { TensorBusError } from "../errors.ts";
import { maxNesting } from "./json-keys.ts";
import { formatPath, type SpecPath, type SpecPlaces } from "./spec-places.ts";

const maxAliases = 1000;
/** What the parser holds for each level, at most: a collection, and an entry of it. */
const maxStack = 2 * maxNesting;

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
    this.#document = this.#parse(text);
    const error = this.#document.errors[0];
    if (error !== undefined) throw this.#invalid(error.message, error.pos[0], error);
    const again = repeatedKey(this.#document);
    if (again !== undefined) throw this.#invalid("Map keys must be unique", again);
    try {
      this.value = this.#document.toJS({ maxAliasCount: maxAliases });
    } catch (cause) {
      throw new TensorBusError("TB_SPEC", `${file}: ${(cause as Error).message}`, {
        details: { file },
        cause,
      });
    }
  }

  /** Composes the document as `parseDocument` does, but ends as soon as it is nested too deeply: others ran out of stack. */
  #parse(text: string): Document.Parsed {
    this.#lines.addNewLine(0);
    const parser = new Parser(this.#lines.addNewLine);
    const composer = new Composer({ prettyErrors: false, uniqueKeys: false, logLevel: "error" });
    const tooDeep = (offset: number) => this.#invalid(`nested deeper than ${maxNesting} levels`, offset);
    const tokens = function* () {
      for (const lexeme of new Lexer().lex(text)) {
        yield* parser.next(lexeme);
        if (parser.stack.length > maxStack) throw tooDeep(parser.offset);
      }
      yield* parser.end();
    };
    const [document, another] = [...composer.compose(tokens(), true, text.length)];
    if (another !== undefined)
      throw this.#invalid("the file must hold one document, and holds several", another.range[0]);
    return document as Document.Parsed;
  }

  #invalid(what: string, offset: number, cause?: unknown): TensorBusError {
    const { file } = this;
    const line = this.#lineAt(offset);
    const language = extname(file) === ".json" ? "JSON" : "YAML";
    return new TensorBusError("TB_SPEC", `${file}:${line}: not valid ${language}: ${what}`, {
      details: { file, line },
      cause,
    });
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

  /** The line of a value; if the value itself is missing, of the nearest one that would hold it. */
  #line(path: SpecPath): number | undefined {
    for (let length = path.length; length >= 0; length--) {
      const key = length > 0 ? this.#keyOffset(path.slice(0, length)) : undefined;
      const node = length === 0 ? this.#document.contents : this.#document.getIn(path.slice(0, length), true);
      const offset = key ?? (isNode(node) ? node.range?.[0] : undefined);
      if (offset !== undefined) return this.#lineAt(offset);
    }
    return undefined;
  }

  /** Says where the key of a value stands: its line is the one that a reader looks for. */
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

/** Says where a key stands that its map has already; the parser's own check would compare each key with all others. */
function repeatedKey(document: Document.Parsed): number | undefined {
  let found: number | undefined;
  visit(document, {
    Map(_, { items }) {
      const keys = new Set<unknown>();
      for (const { key } of items) {
        if (!isScalar(key)) continue;
        if (keys.has(key.value)) {
          found = key.range?.[0] ?? 0;
          return visit.BREAK;
        }
        keys.add(key.value);
      }
      return undefined;
    },
  });
  return found;
}
