/**
 * Another process that owns GPU memory: says its handle, and those of two events; at a line of input whether all of it has a
 * value, or, after `set`, gives all of it one, or, at `free`, frees it though others may have it open. `record NAME` puts an
 * event behind what its GPU has to do, `wait NAME` answers once that has happened.
 */
import { createInterface } from "node:readline";
import { eventHappened } from "../../src/bus/batch/region-events.ts";
import { openEventPort } from "../../src/bus/process/event-port.ts";
import { Deadline } from "../../src/deadline.ts";
import { DeviceEvent } from "../../src/memory/cuda/index.ts";
import { DeviceMemory } from "../../src/memory/index.ts";

const [device, bytes] = process.argv.slice(2) as [string, string];
const memory = DeviceMemory.allocate(device, Number(bytes));
const held = new Uint8Array(Number(bytes));
memory.write(held);
const { handle, offset } = memory.export();
const events = { ready: DeviceEvent.create(device), free: DeviceEvent.create(device) };
const port = openEventPort();
const say = (what: object) => console.log(JSON.stringify(what));
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");
say({
  handle: hex(handle),
  offset: Number(offset),
  uuid: device,
  ready: hex(events.ready.export()),
  free: hex(events.free.export()),
});
createInterface({ input: process.stdin }).on("line", (line) => {
  if (line === "free") {
    memory.close();
    say({ freed: true });
    return;
  }
  const [, verb, name] = /^(record|wait) (ready|free)$/.exec(line) ?? [];
  const event = events[name as keyof typeof events];
  if (verb === "record") {
    event.record();
    say({ recorded: name });
    return;
  }
  if (verb === "wait") {
    void eventHappened(port, event, new Deadline()).then(() => say({ happened: name }));
    return;
  }
  const value = line.replace(/^set /, "");
  if (value !== line) {
    memory.write(held.fill(Number(value)));
    say({ set: true });
    return;
  }
  memory.read(held);
  say({ filled: held.every((byte) => byte === Number(value)) });
});
