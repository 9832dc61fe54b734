/**
 * `npm run chaos -- --faults N --seed S [--seconds T] [--only NAME] [--transports A,B] [--json FILE [--add]]`: real processes, and faults drawn by a seed while
 * their rounds and registrations are under way. After each: every call ended in time and with a code, no element is of no
 * step, staged rounds were whole, and at the latest the second lockstep call succeeds; at the end nothing is left. What
 * happened while the machine itself stood still is not judged, and counted. The report is written after each fault; SIGTERM
 * and SIGINT end the run after the one that is under way.
 */
import type { Programs } from "./children.ts";
import { clusterTransports } from "./cluster.ts";
import { faults } from "./faults.ts";
import { optionsOf } from "./options.mjs";
import { ReportWriter } from "./report.ts";
import { ChaosRunner } from "./runner.ts";

const values = optionsOf(process.argv.slice(2));
const programs = JSON.parse(process.env["CHAOS_PROGRAMS"]!) as Programs;
const writer = new ReportWriter(Number(values.seed), values.json, values.add);
for (const { name, needs } of faults) {
  const most = [
    { transport: "tcp", store: "etcd", commit: "staged" },
    { transport: "tcp", store: "tcp", commit: "staged" },
  ] as const;
  if (!most.some((options) => needs?.(options) ?? true)) writer.skip(name);
}
const stop = new AbortController();
for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => stop.abort());
const transports = values.transports.split(",").map((name) => {
  const known = clusterTransports.find((transport) => transport === name);
  if (known === undefined) throw new Error(`no transport ${name}; there are ${clusterTransports.join(", ")}`);
  return known;
});
await new ChaosRunner(programs, Number(values.seed), writer, transports).run({
  faults: Number(values.faults),
  seconds: Number(values.seconds),
  only: values.only,
  signal: stop.signal,
});
writer.write();
const { total, violations, skipped, runs } = writer.report;
console.log(
  `${total.injected} faults: ${total.survived} survived, ${total.discarded} discarded, ${total.violated} violated`,
);
const { unstarted = 0 } = runs.at(-1)!;
if (unstarted > 0) console.log(`${unstarted} clusters did not start: the machine was too slow`);
for (const name of skipped) console.log(`skipped, not allowed on this machine: ${name}`);
// A run that injected nothing has shown nothing.
process.exitCode = violations.length === 0 && total.injected > 0 ? 0 : 1;
