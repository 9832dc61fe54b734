/** What of a job stands in the store after it. */

/** A record of a registration of that batch with a lower number. */
export function isBefore(key: string, batch: string, number: number): boolean {
  const found = /^bus\/batch\/s_(.*)-[0-9a-f]{24}\/(\d+)\//.exec(key);
  return found?.[1] === batch && Number(found[2]) < number;
}

/** Records that outlive a batch: its counter, and the nonce of the store's life. */
export function isKept(key: string): boolean {
  return key.endsWith("/latest") || key === "bus/life";
}

/** Of how many rounds of one direction at most something stands. */
export function mostRounds(keys: Iterable<string>): number {
  const rounds = new Map<string, Set<string>>();
  for (const key of keys) {
    const [, direction, round] = /^(bus\/batch\/.*\/rounds)\/(\d+)\//.exec(key) ?? [];
    if (direction !== undefined) rounds.set(direction, (rounds.get(direction) ?? new Set()).add(round!));
  }
  return Math.max(0, ...[...rounds.values()].map(({ size }) => size));
}

/** How many entries the logs of all registrations have: rounds that failed, and ends. */
export function logEntries(keys: Iterable<string>): number {
  return [...keys].filter((key) => /^bus\/batch\/.*\/log\/\d+$/.test(key)).length;
}
