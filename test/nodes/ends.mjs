// A process of the built package that ends while it holds what it opened. Named by its argument; ends with 0 if all was well.
import { memoryStores, SharedTensor } from "tensorbus";
import { memory } from "tensorbus/transports/memory";
import { shm } from "tensorbus/transports/shm";
import { tcp } from "tensorbus/transports/tcp";

const openSession = (transport) => transport.open({ rank: 0, world: 2, store: memoryStores()() });

/** The memory of a view outlives the object that it was taken from: where buffers can be transferred, it goes with them. */
function transferView() {
  const tensor = SharedTensor.allocate([1024, 1024], "uint8");
  tensor.data[7] = 42;
  const { buffer } = tensor.data;
  if (buffer.transfer === undefined) return;
  const moved = buffer.transfer();
  globalThis.gc?.();
  if (new Uint8Array(moved)[7] !== 42) throw new Error("a transferred view lost its memory");
  if (tensor.data[7] !== 42) throw new Error("a tensor lost its memory with a view that was transferred");
}

const ends = {
  "with a tensor": () => {
    globalThis.kept = SharedTensor.allocate([4, 4], "float32");
    kept.data.fill(1);
  },
  "with a transferred view": transferView,
  "with a session of memory": () => openSession(memory()),
  "with a session of shm": () => openSession(shm()),
  "with a session of tcp": () => openSession(tcp()),
};

await ends[process.argv[2]]();
