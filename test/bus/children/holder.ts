/**
 * A process that gets into the way of a queue's writers: it stops or kills itself in the middle of a write transaction,
 * through the gate as every process of the bus, or past it with LMDB alone.
 */
import { open } from "lmdb";
import { openEventPort } from "../../../src/bus/process/event-port.ts";
import { openEnvironment } from "../../../src/bus/queue/environment.ts";

const options: { path: string; past: boolean; signal: NodeJS.Signals } = JSON.parse(process.argv.at(-1)!);

const port = openEventPort();
const environment = options.past
  ? undefined
  : await openEnvironment({ path: options.path, kind: "queue", port });
const root =
  environment?.root ??
  open<Buffer, Buffer>({
    path: options.path,
    noSync: true,
    mapSize: 2 ** 30,
    keyEncoding: "binary",
    encoding: "binary",
  });

const disturb = () => {
  root.put(Buffer.from("half"), Buffer.from("written"));
  process.kill(process.pid, options.signal);
  // Continued, it ends the transaction as if nothing had been.
};

process.on("message", async () => {
  if (environment === undefined) root.transactionSync(disturb);
  else await environment.write("being in the way", disturb);
  process.send?.("done");
});
process.send?.("ready");
port.hold();
