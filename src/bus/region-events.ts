/**
 * The events of GPUs that stand for one registration's memory. A round begins once the GPUs have come to what its owners
 * recorded in `ready`; when it no longer touches the memory, `free` is recorded, which the owners' streams can wait for.
 */
import { type Deadline, waitUntil } from "../deadline.ts";
import { TensorBusError } from "../errors.ts";
import { DeviceEvent } from "../memory/cuda/index.ts";
import type { RegionMessage } from "./commands.ts";
import type { Port } from "./port.ts";

export interface RegionEventsOptions {
  /** Where the native threads that watch events report. */
  readonly port: Port;
  /** Told where `free` can not be recorded. */
  readonly onFault: (error: unknown) => void;
}

export class RegionEvents {
  readonly #port: Port;
  readonly #ready: DeviceEvent[] = [];
  readonly #free: DeviceEvent[] = [];
  readonly #waiting = new Set<(error: TensorBusError) => void>();
  readonly #onFault: (error: unknown) => void;
  /** A round is under way, or has ended without its end being recorded. */
  #isRunning = false;

  private constructor({ port, onFault }: RegionEventsOptions) {
    this.#port = port;
    this.#onFault = onFault;
  }

  /** Opens them; `undefined` where there are none. `TB_CUDA` for a handle of nothing. */
  static open(options: RegionEventsOptions, regions: readonly RegionMessage[]): RegionEvents | undefined {
    const events = new RegionEvents(options);
    try {
      for (const region of regions) {
        if (region.kind !== "cuda") continue;
        if (region.ready !== undefined) events.#ready.push(DeviceEvent.open(region.device, region.ready));
        if (region.free !== undefined) events.#free.push(DeviceEvent.open(region.device, region.free));
      }
    } catch (error) {
      events.close();
      throw error;
    }
    return events.#ready.length + events.#free.length === 0 ? undefined : events;
  }

  /**
   * Runs a round between what the owners recorded before it and what they wait for behind it. `TB_TIMEOUT`, `TB_CANCELLED`
   * where the GPUs do not come to `ready` in time: the round was not begun.
   */
  async around<T>(run: () => Promise<T>, deadline: Deadline): Promise<T> {
    await Promise.all(this.#ready.map((event) => this.#happened(event, deadline)));
    this.#isRunning = true;
    try {
      return await run();
    } catch (error) {
      // The GPU did not stop: the memory is not free.
      if (error instanceof TensorBusError && error.code === "TB_QUARANTINED") this.#isRunning = false;
      throw error;
    } finally {
      this.#endRound();
    }
  }

  /** Only once nothing touches the memory any more. Who waits for a GPU is refused. */
  close(): void {
    const ended = new TensorBusError("TB_CANCELLED", "the batch ended while its round waited for a GPU");
    for (const reject of [...this.#waiting]) reject(ended);
    this.#endRound();
    for (const event of [...this.#ready, ...this.#free]) event.close();
  }

  #endRound(): void {
    if (!this.#isRunning) return;
    this.#isRunning = false;
    try {
      for (const event of this.#free) event.record();
    } catch (error) {
      // The round has ended as it has: that its owner's event is gone is told beside.
      this.#onFault(error);
    }
  }

  #happened(event: DeviceEvent, deadline: Deadline): Promise<void> {
    return waitUntil<void>(`what comes before the round on ${event.device}`, deadline, (resolve, reject) => {
      const token = this.#port.listen(() => {
        try {
          if (watch.isOver()) resolve();
        } catch (error) {
          reject(error);
        }
      });
      const watch = event.watch(this.#port.handle, token);
      const letGo = this.#port.hold();
      this.#waiting.add(reject);
      return () => {
        this.#waiting.delete(reject);
        letGo();
        watch.close();
        this.#port.unlisten(token);
      };
    });
  }
}
