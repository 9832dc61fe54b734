/** An agent's log: each event with rank, pair, batch and round. Secrets and contents of tensors are in none of them. */
import type { Logger } from "pino";
import type { TensorBusError } from "../../errors.ts";
import type { AgentEvent } from "../pair/events.ts";
import type { Agent } from "./agent.ts";

/** Writes an agent's events to a log until the agent is closed. */
export function logAgent(agent: Agent, logger: Logger): void {
  const log = logger.child({ rank: agent.rank });
  agent.events$.subscribe((event) => logEvent(log, event));
}

function logEvent(log: Logger, event: AgentEvent): void {
  switch (event.kind) {
    case "pairMet":
      log.info(plain(event), "both sides of a pair have met");
      break;
    case "batchRegistered":
      log.info(plain(event), "a batch was registered");
      break;
    case "batchEnded": {
      const { registrations: _, ...batch } = event;
      log.info(plain(batch), "a batch has ended");
      break;
    }
    case "roundCompleted": {
      const { report, peers, ...round } = event;
      const { bytesSent, bytesReceived, bytesCopied, seconds } = report;
      log.info(
        { ...plain({ ...round, bytesSent, bytesReceived, bytesCopied }), moved: seconds },
        "a round was completed",
      );
      break;
    }
    case "signal":
    case "roundStarted":
      log.debug(plain(event), event.kind);
      break;
    case "clientEnded":
      log.info(plain(event), "a client has ended");
      break;
    case "storeFound":
      log.info(plain(event), "a store was found again");
      break;
    case "resolved":
      log.warn(plain(event), "a round that was in doubt is decided");
      break;
    case "storeLost":
      log.error(plain(event), "the store was lost");
      break;
    default:
      log.warn(plain(event), event.kind);
  }
}

/** What JSON can hold. */
function plain(event: object): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(event).map(([key, value]) => [key === "reason" ? "error" : key, plainValue(value)]),
  );
}

function plainValue(value: unknown): unknown {
  if (typeof value === "bigint") return value.toString();
  if (value instanceof Error) {
    const { code, message } = value as TensorBusError;
    return { code, message };
  }
  return value;
}
