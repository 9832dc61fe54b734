// Prints the totals of vitest's JSON report alone on a line: `N passed, N failed` (`, N skipped`).
import { readFileSync } from "node:fs";

const report = JSON.parse(readFileSync(process.argv[2], "utf8"));
const skipped = report.numPendingTests + (report.numTodoTests ?? 0);
// A file that could not be loaded has no tests to fail: it counts as one failure.
const failed =
  report.numFailedTests +
  report.testResults.filter((file) => file.status === "failed" && file.assertionResults.length === 0).length;
console.log(`${report.numPassedTests} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`);
if (report.numPassedTests === 0 || failed > 0) process.exitCode = 1;
