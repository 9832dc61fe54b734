/**
 * What every transport must do. An implementation's own test says how its sessions are opened, calls this, and adds what
 * only it can be asked.
 */
import { testData } from "./data.ts";
import { testFailures } from "./failures.ts";
import { testLifecycle } from "./lifecycle.ts";
import { testRefusals } from "./refusals.ts";
import { testRounds } from "./rounds.ts";
import { testStrategies } from "./strategies.ts";
import type { Subject } from "./world.ts";

export function testTransport(subject: Subject): void {
  testData(subject);
  testStrategies(subject);
  testFailures(subject);
  testLifecycle(subject);
  testRefusals(subject);
  testRounds(subject);
}
