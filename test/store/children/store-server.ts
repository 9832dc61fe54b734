/** A store's server in a process of its own, which tells what it takes: bundled and started by the tests. */
import { serveTcpStore } from "../../../src/store/tcp-server.ts";

export interface ServerReport {
  readonly rssBytes: number;
  /** The most processor time between two turns of the event loop since the last report: others share the machine. */
  readonly stallMs: number;
  readonly memoryBytes: number;
  readonly keys: number;
}

const server = await serveTcpStore(JSON.parse(process.argv[2] ?? "{}"));
let before = process.cpuUsage();
let stallMs = 0;
const look = () => {
  const { user, system } = process.cpuUsage(before);
  stallMs = Math.max(stallMs, (user + system) / 1000);
  before = process.cpuUsage();
};
setInterval(look, 1);
process.on("message", () => {
  const { memoryBytes, keys } = server.stats;
  look();
  const report: ServerReport = { rssBytes: process.memoryUsage().rss, stallMs, memoryBytes, keys };
  stallMs = 0;
  process.send!(report);
});
process.on("disconnect", () => process.exit());
process.send!({ port: server.port });
