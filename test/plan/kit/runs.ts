/**
 * How many random cases a property is tried on: a run of the suite tries a few hundred, `TENSORBUS_RUNS=20` twenty times as
 * many. Their seeds are fixed, so that what a run of the suite finds is found again.
 */
export function runs(count: number): number {
  return count * Number(process.env["TENSORBUS_RUNS"] ?? 1);
}
