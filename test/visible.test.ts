/** Other people's text where people read it: a terminal, a log, Markdown and a page obey none of it. */
import { Writable } from "node:stream";
import { describe, expect, it } from "vitest";
import { logger } from "../src/bus/process/logger.ts";
import { code, markdownTable } from "../src/cli/ui/markdown.ts";
import { Output, type OutputStream } from "../src/cli/ui/output.ts";
import { formatTable } from "../src/cli/ui/table.ts";
import { visible, visibleLine } from "../src/visible.ts";

const escapes = "\u001b[31mred\u001b]0;title\u0007\u001b[2J";
const bidi = "layers.\u202ethgiew\u202c.\u2066q\u2069";
const hidden = "a\u200bb\u00adc\ufeffd\u{e0041}e";
/** What must not be there, but for ends of lines. */
const obeyed = /(?!\n)[\p{Cc}\p{Cf}]/u;
const ours = [1, 2, 22, 31, 39].map((number) => `\u001b[${number}m`);

function captured(isTTY: boolean) {
  let text = "";
  const stream = new Writable({
    write: (chunk, _, done) => {
      text += String(chunk);
      done();
    },
  }) as OutputStream;
  Object.assign(stream, { isTTY, columns: 200 });
  return { output: new Output(stream, {}), text: () => text };
}

describe("what others wrote", () => {
  it("is seen as it is", () => {
    expect(visible(escapes)).toBe("\\u001b[31mred\\u001b]0;title\\u0007\\u001b[2J");
    expect(visible(bidi)).toBe("layers.\\u202ethgiew\\u202c.\\u2066q\\u2069");
    expect(visible(hidden)).toBe("a\\u200bb\\u00adc\\ufeffd\\udb40\\udc41e");
    expect(visible("größe 🙂 e\u0301 שלום 重み\tx\n")).toBe("größe 🙂 e\u0301 שלום 重み\tx\n");
    expect(visible("\ud800")).toBe("\\ud800");
    expect(visibleLine("a\nb\tc\r")).toBe("a\\nb\\tc\\u000d");
    // In JSON it is the same text.
    const json = JSON.stringify({ [bidi]: hidden });
    expect(JSON.parse(visible(json))).toEqual({ [bidi]: hidden });
  });

  it.each([false, true])("moves no cursor, and colours nothing (terminal: %s)", async (isTTY) => {
    const { output, text } = captured(isTTY);
    await output.line(`${output.colors.red("error:")} ${escapes} ${bidi} ${hidden}`);
    const table = { columns: [{ head: "name" }], rows: [[`${escapes}\nsecond`], [bidi]] };
    await output.line(formatTable(output, table.columns, table.rows));
    const plain = isTTY ? ours.reduce((left, colour) => left.replaceAll(colour, ""), text()) : text();
    expect(plain).not.toMatch(obeyed);
    expect(plain).toContain("\\u202ethgiew");
    expect(plain).toContain("\\nsecond");
    // Ours are there, on a terminal, and no others.
    expect(text().includes("\u001b[31merror:\u001b[39m")).toBe(isTTY);
    expect(text()).not.toContain("\u001b[31mred");
  });

  it("cannot be taken for our own colours by what it may guess", async () => {
    const { output, text } = captured(true);
    await output.line("\u001b[31;1000;1000mred\u001b[39;1000;1000m \u001b[31mred");
    expect(text()).not.toContain("\u001b");
  });

  it("is no markup, and seen, in Markdown", () => {
    const page = markdownTable({ columns: [{ head: "name" }], rows: [[bidi], [`a|b ${escapes}`], [hidden]] });
    expect(page).not.toMatch(obeyed);
    expect(code(bidi)).toBe("`layers.\\u202ethgiew\\u202c.\\u2066q\\u2069`");
  });

  it("is one line of a log, and seen in it", () => {
    const hooks = Object.getOwnPropertySymbols(logger).find(
      ({ description }) => description === "pino.hooks",
    )!;
    const { streamWrite } = (logger as unknown as Record<symbol, { streamWrite: (line: string) => string }>)[
      hooks
    ]!;
    const message = { msg: `${escapes}${bidi}\nnext` };
    const line = streamWrite(JSON.stringify(message));
    expect(line).not.toMatch(obeyed);
    expect(line).not.toContain("\n");
    expect(JSON.parse(line)).toEqual(message);
  });
});
