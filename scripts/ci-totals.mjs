// Prints the totals of test reports alone on a line: `N passed, N failed` (`, N skipped`). Reports are vitest's JSON, and JUnit's
// XML as pytest writes it; one that does not exist was not written, since nothing could be run there.
import { existsSync, readFileSync } from "node:fs";

function ofVitest(text) {
  const report = JSON.parse(text);
  // A file that could not be loaded has no tests to fail: it counts as one failure.
  const broken = report.testResults.filter(
    ({ status, assertionResults }) => status === "failed" && assertionResults.length === 0,
  ).length;
  return {
    passed: report.numPassedTests,
    failed: report.numFailedTests + broken,
    skipped: report.numPendingTests + (report.numTodoTests ?? 0),
  };
}

function ofJunit(text) {
  const totals = { passed: 0, failed: 0, skipped: 0 };
  for (const [suite] of text.matchAll(/<testsuite\s[^>]*>/g)) {
    const count = (name) => Number(new RegExp(`\\s${name}="(\\d+)"`).exec(suite)?.[1] ?? 0);
    const failed = count("failures") + count("errors");
    totals.failed += failed;
    totals.skipped += count("skipped");
    totals.passed += count("tests") - failed - count("skipped");
  }
  return totals;
}

const sum = { passed: 0, failed: 0, skipped: 0 };
for (const path of process.argv.slice(2).filter((path) => existsSync(path))) {
  const text = readFileSync(path, "utf8");
  const totals = path.endsWith(".xml") ? ofJunit(text) : ofVitest(text);
  for (const name of Object.keys(sum)) sum[name] += totals[name];
}
console.log(`${sum.passed} passed, ${sum.failed} failed${sum.skipped > 0 ? `, ${sum.skipped} skipped` : ""}`);
if (sum.passed === 0 || sum.failed > 0) process.exitCode = 1;
