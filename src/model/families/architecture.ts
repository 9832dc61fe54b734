import type { Family } from "./table.ts";

/** What stands above a model's body. */
export type Head = "causal" | "none" | "sequence" | "token" | "question";

/** What an architecture's name ends in, the longest first. */
const endings: readonly (readonly [string, Head])[] = [
  ["ForSequenceClassification", "sequence"],
  ["ForTokenClassification", "token"],
  ["ForQuestionAnswering", "question"],
  ["ForCausalLM", "causal"],
  ["Model", "none"],
];

/** The head of `architectures`, a causal one unless it says; `undefined` for a class that is not known. */
export function headOf(family: Family, architecture: string | undefined): Head | undefined {
  if (architecture === undefined) return "causal";
  for (const [ending, head] of endings) {
    if (family.classes.some((name) => architecture === name + ending)) return head;
  }
  return undefined;
}

export function knownArchitectures(family: Family): string[] {
  return family.classes.flatMap((name) => endings.map(([ending]) => name + ending));
}

/** The prefix of the body's tensors: a base model has none, a question's head calls it otherwise. */
export function bodyName(name: string, head: Head): string {
  if (head === "none") return name.replace(/^model\./, "");
  return head === "question" ? name.replace(/^model\./, "transformer.") : name;
}
