/** What can be taken back: the commands that run, each with the signal that ends it. */
import { TensorBusError } from "../../errors.ts";
import type { Command } from "../queue/commands.ts";

type CommandIdentity = Pick<Command, "client" | "id">;

export class CommandAborts {
  readonly #running = new Map<string, AbortController>();

  get running(): number {
    return this.#running.size;
  }

  /** The signal of a command that begins. */
  begin(command: CommandIdentity): AbortSignal {
    const controller = new AbortController();
    this.#running.set(keyOfCommand(command.client.id, command.id), controller);
    return controller.signal;
  }

  end(command: CommandIdentity): void {
    this.#running.delete(keyOfCommand(command.client.id, command.id));
  }

  /** Ends a command of a client with `TB_CANCELLED`; false if none of that number runs. */
  cancel(client: bigint, id: bigint): boolean {
    const controller = this.#running.get(keyOfCommand(client, id));
    controller?.abort(new TensorBusError("TB_CANCELLED", "the client has taken the command back"));
    return controller !== undefined;
  }
}

function keyOfCommand(client: bigint, id: bigint): string {
  return `${client}/${id}`;
}
