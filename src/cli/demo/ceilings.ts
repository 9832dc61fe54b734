import { fork } from "node:child_process";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { TensorBusError } from "../../errors.ts";
import { HostMemory, move } from "../../memory/index.ts";

const copyBytes = 256 * 2 ** 20;
const socketBytes = 512 * 2 ** 20;
const writeBytes = 4 * 2 ** 20;
const readBytes = 2 ** 20;

/** Bytes a second of copying touched memory to touched memory, in one thread: the best of five. */
export function memcpyCeiling(): number {
  using from = disposable(HostMemory.allocate(copyBytes));
  using to = disposable(HostMemory.allocate(copyBytes));
  from.memory.view(Uint8Array).fill(1);
  let best = 0;
  for (let run = 0; run < 6; run++) {
    const started = performance.now();
    move(
      { bytes: { memory: to.memory }, dtype: "uint8" },
      { bytes: { memory: from.memory }, dtype: "uint8" },
    );
    const speed = copyBytes / ((performance.now() - started) / 1000);
    if (run > 0) best = Math.max(best, speed); // the first one touches the pages
  }
  return best;
}

/** Bytes a second over a loopback socket from a second process to this one, into one buffer. */
export async function socketCeiling(entry: string): Promise<number> {
  const child = fork(entry, ["demo-socket"], { stdio: ["ignore", "inherit", "inherit", "ipc"] });
  try {
    const port = await new Promise<number>((resolve, reject) => {
      child.once("message", (message) => resolve(message as number));
      child.once("error", reject);
      child.once("exit", (code) =>
        reject(new TensorBusError("TB_SYSTEM", `the sender ended with exit code ${code}`)),
      );
    });
    return await receive(port);
  } finally {
    child.kill();
  }
}

async function receive(port: number): Promise<number> {
  let received = 0;
  let started = 0;
  const buffer = Buffer.alloc(readBytes);
  const callback = (bytes: number) => {
    if (received === 0) started = performance.now(); // what came before is connecting
    received += bytes;
    return true;
  };
  const socket = connect({ port, host: "127.0.0.1", onread: { buffer, callback } });
  await once(socket, "close");
  return received / ((performance.now() - started) / 1000);
}

/** The second process: sends to the first that connects, and ends. */
export async function serveSocket(): Promise<void> {
  const server = createServer();
  server.listen(0, "127.0.0.1", () => process.send?.((server.address() as AddressInfo).port));
  const [socket] = (await once(server, "connection")) as [Socket];
  const block = Buffer.alloc(writeBytes);
  for (let sent = 0; sent < socketBytes; sent += writeBytes) {
    if (!socket.write(block)) await once(socket, "drain");
  }
  socket.end();
  await once(socket, "close");
  server.close();
  process.disconnect?.();
}

function disposable(memory: HostMemory): { readonly memory: HostMemory } & Disposable {
  return { memory, [Symbol.dispose]: () => memory.close() };
}
