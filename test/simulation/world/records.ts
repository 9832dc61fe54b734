/** The state of an agent, in memory: it outlives the agent, as that on a disk does. */
import type { z } from "zod";
import type { Records, Table } from "../../../src/bus/queue/state.ts";
import type { Scheduler } from "./scheduler.ts";

const writeMs = 0.05;

export class MemoryRecords implements Records {
  readonly #tables = new Map<string, Map<string, unknown>>();
  readonly #scheduler: Scheduler;

  constructor(scheduler: Scheduler) {
    this.#scheduler = scheduler;
  }

  table<T>(name: "pairs" | "batches" | "rounds", schema: z.ZodType<T>): Table<T> {
    const rows = (this.#tables.get(name) ?? new Map()) as Map<string, T>;
    this.#tables.set(name, rows);
    return {
      get: (key) => rows.get(key),
      put: (key, value) => void rows.set(key, schema.parse(value)),
      remove: (key) => rows.delete(key),
      entries: () => [...rows],
    };
  }

  write<T>(_what: string, work: () => T): Promise<T> {
    return new Promise((resolve, reject) => {
      this.#scheduler.after(writeMs, () => {
        try {
          resolve(work());
        } catch (error) {
          reject(error);
        }
      });
    });
  }
}
