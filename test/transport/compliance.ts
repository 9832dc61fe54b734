/**
 * What every transport must do. An implementation's own test says how its sessions are opened, calls this, and adds what
 * only it can be asked.
 */
import { testData } from "./compliance-data.ts";
import { testFailures } from "./compliance-failures.ts";
import { testLifecycle } from "./compliance-lifecycle.ts";
import { testRefusals } from "./compliance-refusals.ts";
import { testStrategies } from "./compliance-strategies.ts";
import type { Subject } from "./world.ts";

export function testTransport(subject: Subject): void {
  testData(subject);
  testStrategies(subject);
  testFailures(subject);
  testLifecycle(subject);
  testRefusals(subject);
}
