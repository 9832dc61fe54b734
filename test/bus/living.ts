/** A process that holds an agent's locks and has a heart that beats, until it is killed. */
import { claimFolder, startHeartbeat } from "../../src/bus/liveness.ts";
import { openPort } from "../../src/bus/port.ts";

const { locks } = JSON.parse(process.argv.at(-1)!);
const port = openPort();
await claimFolder(port, locks).live();
process.send?.({ heartbeat: startHeartbeat().name });
port.hold();
