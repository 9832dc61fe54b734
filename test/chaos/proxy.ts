/** A proxy of TCP that can cut what goes through it, or hold it up: the network between two processes of this machine. */
import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";

export class CuttingProxy {
  readonly #server: Server;
  readonly #pairs = new Set<readonly [Socket, Socket]>();
  #targetPort = 0;
  #held = false;

  private constructor(server: Server) {
    this.#server = server;
    server.on("connection", (client) => this.#join(client));
  }

  static async open(): Promise<CuttingProxy> {
    const server = createServer({ noDelay: true }).listen(0, "127.0.0.1");
    await once(server, "listening");
    return new CuttingProxy(server);
  }

  get port(): number {
    return (this.#server.address() as { port: number }).port;
  }

  /** Where what comes from here on goes to. */
  leadTo(port: number): void {
    this.#targetPort = port;
  }

  /** Ends all connections that there are. */
  cut(): void {
    for (const pair of this.#pairs) for (const socket of pair) socket.destroy();
  }

  /** Lets nothing through, and nothing be lost, until `false`. */
  hold(held: boolean): void {
    this.#held = held;
    for (const pair of this.#pairs) for (const socket of pair) held ? socket.pause() : socket.resume();
  }

  async close(): Promise<void> {
    this.cut();
    this.#server.close();
    await once(this.#server, "close");
  }

  #join(client: Socket): void {
    const server = connect({ port: this.#targetPort, host: "127.0.0.1", noDelay: true });
    const pair = [client, server] as const;
    this.#pairs.add(pair);
    client.pipe(server);
    server.pipe(client);
    if (this.#held) for (const socket of pair) socket.pause();
    for (const socket of pair) {
      socket.on("error", () => {});
      socket.once("close", () => {
        this.#pairs.delete(pair);
        for (const other of pair) other.destroy();
      });
    }
  }
}
