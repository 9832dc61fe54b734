/** What a source has written stays as it is until its round is over, whatever becomes of rounds that its rank has received before. */
import type { AgentEvent } from "../../../src/bus/pair/events.ts";
import type { SimulatedAgent } from "../world/agent.ts";
import type { Ledger } from "./ledger.ts";
import { areSame, type TransferCall } from "./transfer-call.ts";

/** The way of a call to its agent, in milliseconds, and a little more. */
const wayMs = 0.1;

/** An agent has told of something: if it is the end of a round, its source's memory is what its client had written. */
export function checkSent(
  ledger: Ledger,
  now: number,
  agent: SimulatedAgent,
  event: AgentEvent,
  transfers: Iterable<TransferCall>,
): void {
  const isEnd = event.kind === "roundCompleted" || event.kind === "roundFailed";
  if (!isEnd && event.kind !== "resolved") return;
  for (const transfer of transfers) {
    const { call, registration, from, stamp, before } = transfer;
    const isHere = call.client.agent === agent && call.ended === undefined && call.client.isAlive;
    if (!isHere || registration.plan.id !== event.batch || registration.side !== from) continue;
    if (isEnd && event.from === from) {
      ledger.require(areSame(before, registration.values), "a round sends what its caller wrote", () => {
        return `${call.client.name} call ${call.number}: it changed before round ${event.round} was over`;
      });
    }
    // Nobody can keep apart what a client writes and what its agent copies before the client has called: here the client is the later one.
    if (event.kind === "resolved" && event.from !== from && now - call.began < wayMs)
      registration.fill(stamp);
  }
}
