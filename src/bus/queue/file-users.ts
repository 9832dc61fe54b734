/** LMDB's own locks and the folder's file of locks must agree on who uses its files. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Deadline } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import { formatError } from "../process/folder.ts";

/** Values of `tb_gate_users` in native/include/tensorbus_bus.h. */
export const usersKnown = 0;
const usersUnknown = 1;
/** Both may say different things for so long: a process that ends lets go of them one after the other. */
const settleMs = 500;
const settleStepMs = 5;

/** Calls `open` until it says `usersKnown`. What else it said for half a second, or until the deadline, is the result. */
export async function openOnceKnown(open: () => Promise<number>, deadline: Deadline): Promise<number> {
  const end = performance.now() + Math.min(settleMs, deadline.remainingMs);
  for (;;) {
    const users = await open();
    if (users === usersKnown || performance.now() >= end) return users;
    await sleep(settleStepMs);
  }
}

export function usersError(
  users: number,
  { path, lockPath, locksPath }: { path: string; lockPath: string; locksPath: string },
): TensorBusError {
  if (users !== usersUnknown) {
    return formatError(path, `${lockPath} is damaged: it is not the one that other processes use`);
  }
  // Removing the folder helps nobody here: as long as that process has it open, it goes on in the one that was removed.
  const message =
    `another process has ${lockPath} open, but ${locksPath} does not list it: it does not use the bus, or ${locksPath} ` +
    "was removed while it ran. End that process, and try again; if it was an agent, start it again";
  return new TensorBusError("TB_BUS_FORMAT", message, { details: { path } });
}
