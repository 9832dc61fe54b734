/**
 * The events of GPUs that stand for one registration's memory. A round begins once the GPUs have come to what its owners
 * recorded in `ready`; when it no longer touches the memory, `free` is recorded, which the owners' streams can wait for.
 */
import { type Deadline, waitUntil } from "../../deadline.ts";
import { DeviceEvent, type EventWatch } from "../../memory/cuda/index.ts";
import type { EventPort } from "../process/event-port.ts";
import type { RegionMessage } from "../queue/commands.ts";

export interface RegionEventsOptions {
  /** The port where the native threads that watch events report. */
  readonly port: EventPort;
  /** Called if `free` cannot be recorded. */
  readonly onFault: (error: unknown) => void;
}

export class RegionEvents {
  readonly #port: EventPort;
  readonly #onFault: (error: unknown) => void;
  readonly #ready: DeviceEvent[] = [];
  readonly #free: DeviceEvent[] = [];

  private constructor({ port, onFault }: RegionEventsOptions) {
    this.#port = port;
    this.#onFault = onFault;
  }

  /** Opens them; `undefined` if there are none. `TB_CUDA` for a handle of nothing. */
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

  /** Resolves once what was recorded last in every `ready` has happened. `TB_CUDA` if that cannot be known any more. */
  async ready(deadline: Deadline): Promise<void> {
    await Promise.all(this.#ready.map((event) => eventHappened(this.#port, event, deadline)));
  }

  /** Records every `free`: nothing of a round touches the memory any more. The round has ended as it has, if one fails. */
  recordFree(): void {
    this.#each(this.#free, (event) => event.record());
  }

  /** Only when no round waits for them. */
  close(): void {
    this.#each([...this.#ready, ...this.#free], (event) => event.close());
  }

  /** One that fails keeps no other from it: its owner may have ended. */
  #each(events: readonly DeviceEvent[], act: (event: DeviceEvent) => void): void {
    for (const event of events) {
      try {
        act(event);
      } catch (error) {
        this.#onFault(error);
      }
    }
  }
}

/** Resolves once what was recorded last in an event has happened; `port` is told of it by a native thread. */
export function eventHappened(port: EventPort, event: DeviceEvent, deadline: Deadline): Promise<void> {
  return waitUntil<void>(`what comes before the round on ${event.device}`, deadline, (resolve, reject) => {
    const token = port.listen(() => {
      try {
        if (watch?.isOver()) resolve();
      } catch (error) {
        reject(error);
      }
    });
    let watch: EventWatch | undefined;
    const letGo = port.hold();
    try {
      watch = event.watch(port.handle, token);
    } catch (error) {
      reject(error);
    }
    return () => {
      letGo();
      watch?.close();
      port.unlisten(token);
    };
  });
}
