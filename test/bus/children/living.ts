/** A process that holds an agent's locks and has a heart that beats, until it is killed. */

import { openEventPort } from "../../../src/bus/process/event-port.ts";
import { claimFolder, startHeartbeat } from "../../../src/bus/process/liveness.ts";

const { locks } = JSON.parse(process.argv.at(-1)!);
const port = openEventPort();
await claimFolder(port, locks).live();
process.send?.({ heartbeat: startHeartbeat().name });
port.hold();
