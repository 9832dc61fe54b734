/** Names of tensors, told in few words. */

/** The most groups of names that a message lists. */
const maxGroups = 4;

/**
 * Many names in few words: numbers between dots become `*`, and names that then differ in one part come as one, so that
 * 96 names of a model are `layers.*.self_attn.{q,k,v}_proj.weight (96)`.
 */
export function collapseNames(names: readonly string[]): string {
  const counts = new Map<string, number>();
  for (const name of names) {
    const pattern = name
      .split(".")
      .map((part) => (/^\d+$/.test(part) ? "*" : part))
      .join(".");
    counts.set(pattern, (counts.get(pattern) ?? 0) + 1);
  }
  const groups = joinPatterns([...counts].map(([pattern, count]) => ({ parts: pattern.split("."), count })));
  groups.sort((a, b) => b.count - a.count);
  const shown = groups.slice(0, maxGroups).map(({ parts, count }) => `${parts.join(".")} (${count})`);
  const rest = groups.slice(maxGroups).reduce((sum, { count }) => sum + count, 0);
  return rest === 0 ? shown.join(", ") : `${shown.join(", ")} and ${rest} more`;
}

interface Pattern {
  readonly parts: readonly string[];
  readonly count: number;
}

/** Joins patterns of one length that stand for equally many names and differ in one part. */
function joinPatterns(patterns: readonly Pattern[]): Pattern[] {
  const left = new Set(patterns);
  const joined: Pattern[] = [];
  for (const pattern of patterns) {
    if (!left.has(pattern)) continue;
    let best: { readonly members: Pattern[]; readonly part: number } = { members: [pattern], part: 0 };
    for (let part = 0; part < pattern.parts.length; part++) {
      const members = [...left].filter((other) => differOnlyIn(part, pattern, other));
      if (members.length > best.members.length) best = { members, part };
    }
    for (const member of best.members) left.delete(member);
    joined.push(best.members.length === 1 ? pattern : joinAt(best.part, best.members));
  }
  return joined;
}

function differOnlyIn(part: number, one: Pattern, other: Pattern): boolean {
  return (
    one.count === other.count &&
    one.parts.length === other.parts.length &&
    one.parts.every((text, index) => index === part || text === other.parts[index])
  );
}

function joinAt(part: number, members: readonly Pattern[]): Pattern {
  const texts = members.map(({ parts }) => parts[part]!).sort();
  const suffix = commonSuffix(texts);
  const heads = texts.map((text) => text.slice(0, text.length - suffix.length));
  const parts = members[0]!.parts.with(part, `{${heads.join(",")}}${suffix}`);
  return { parts, count: members.reduce((sum, { count }) => sum + count, 0) };
}

/** From an underscore on, so that no word is cut. */
function commonSuffix(texts: readonly string[]): string {
  const [first] = texts as [string];
  for (let at = first.indexOf("_"); at > 0; at = first.indexOf("_", at + 1)) {
    const suffix = first.slice(at);
    if (texts.every((text) => text.length > suffix.length && text.endsWith(suffix))) return suffix;
  }
  return "";
}
