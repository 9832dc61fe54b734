/**
 * What others wrote (names of tensors, messages of peers, paths) is data wherever people read it: characters that a
 * terminal obeys, that are not seen, or that change the order of what is seen, are shown as `\u001b`. Inside of JSON that
 * is the same character, written otherwise.
 */

/** Most texts have nothing else than this, which is told faster. */
const beyondAscii = /[^\t\n -~]/;

/** The text with everything visible in it, but for tabs and ends of lines. */
export function visible(text: string): string {
  if (!beyondAscii.test(text)) return text;
  // Controls but tab and line feed, formats (directions, joiners, tags), what is not drawn, and halves of characters.
  return text.replace(/(?![\t\n])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{DI}\p{Cs}]/gu, escaped);
}

/** The same in one line: what would end it, or move within it, is shown as well. */
export function visibleLine(text: string): string {
  return visible(text).replace(/[\t\n]/g, (character) => (character === "\n" ? "\\n" : "\\t"));
}

/** Each of the one or two units of a character. */
function escaped(character: string): string {
  return Array.from(
    character.split(""),
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
  ).join("");
}
