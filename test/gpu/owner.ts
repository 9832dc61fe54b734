/**
 * Another process that owns GPU memory: says its handle; at a line of input whether all of it has a value, or, after `set`,
 * gives all of it one.
 */
import { createInterface } from "node:readline";
import { DeviceMemory } from "../../src/memory/index.ts";

const [device, bytes] = process.argv.slice(2) as [string, string];
const memory = DeviceMemory.allocate(device, Number(bytes));
const held = new Uint8Array(Number(bytes));
memory.write(held);
const { handle, offset } = memory.export();
console.log(
  JSON.stringify({ handle: Buffer.from(handle).toString("hex"), offset: Number(offset), uuid: device }),
);
createInterface({ input: process.stdin }).on("line", (line) => {
  const value = line.replace(/^set /, "");
  if (value !== line) {
    memory.write(held.fill(Number(value)));
    console.log(JSON.stringify({ set: true }));
    return;
  }
  memory.read(held);
  console.log(JSON.stringify({ filled: held.every((byte) => byte === Number(value)) }));
});
