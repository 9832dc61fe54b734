/** What Prometheus can be told of an agent, on a port of this host that is served only if it is asked for. */
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { Counter, Gauge, Histogram, Registry } from "prom-client";
import { TensorBusError } from "../../errors.ts";
import type { AgentEvent } from "../pair/events.ts";
import type { Agent } from "./agent.ts";

export interface MetricsOptions {
  /** Default 0: a free one. */
  readonly port?: number;
  /** The address to listen on; default `127.0.0.1`: the metrics need no secret. */
  readonly host?: string;
}

export interface MetricsServer extends AsyncDisposable {
  readonly registry: Registry;
  readonly port: number;
  close(): Promise<void>;
}

const secondsBuckets = [0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60];

/** Counts an agent's events until it is closed. */
export function agentMetrics(agent: Agent): Registry {
  const registry = new Registry();
  registry.setDefaultLabels({ rank: String(agent.rank) });
  const registers = [registry];
  const metrics = {
    rounds: new Counter({
      name: "tensorbus_rounds_total",
      help: "Rounds that ended on this rank.",
      labelNames: ["outcome"],
      registers,
    }),
    bytes: new Counter({
      name: "tensorbus_peer_bytes_total",
      help: "Payload bytes of completed rounds.",
      labelNames: ["peer", "direction", "transport"],
      registers,
    }),
    seconds: new Histogram({
      name: "tensorbus_stage_seconds",
      help: "Seconds that registrations and rounds took, by step: meet, plan, prepare, move, commit.",
      labelNames: ["stage"],
      buckets: secondsBuckets,
      registers,
    }),
    prediction: new Gauge({
      name: "tensorbus_round_predicted_ratio",
      help: "Seconds that the last round took, divided by the seconds predicted for it.",
      registers,
    }),
    errors: new Counter({
      name: "tensorbus_errors_total",
      help: "Commands, rounds and faults that ended in an error.",
      labelNames: ["code"],
      registers,
    }),
    batches: new Gauge({ name: "tensorbus_batches", help: "Batches that are registered.", registers }),
  };
  new Gauge({
    name: "tensorbus_queue_depth",
    help: "Commands that wait to be started.",
    registers,
    collect() {
      this.set(agent.queueDepth);
    },
  });
  agent.events$.subscribe((event) => count(metrics, event));
  return registry;
}

interface Metrics {
  readonly rounds: Counter<"outcome">;
  readonly bytes: Counter<"peer" | "direction" | "transport">;
  readonly seconds: Histogram<"stage">;
  readonly prediction: Gauge;
  readonly errors: Counter<"code">;
  readonly batches: Gauge;
}

function count(metrics: Metrics, event: AgentEvent): void {
  switch (event.kind) {
    case "batchRegistered":
      metrics.batches.inc();
      observe(metrics, event.seconds);
      break;
    case "batchEnded":
      metrics.batches.dec();
      break;
    case "roundCompleted": {
      metrics.rounds.inc({ outcome: "completed" });
      observe(metrics, event.seconds);
      for (const [rank, { sent, received, transport }] of event.peers) {
        const peer = String(rank);
        metrics.bytes.inc({ peer, direction: "sent", transport }, Number(sent));
        metrics.bytes.inc({ peer, direction: "received", transport }, Number(received));
      }
      const { predictedSeconds, report } = event;
      if (predictedSeconds !== undefined && predictedSeconds > 0) {
        metrics.prediction.set(report.seconds / predictedSeconds);
      }
      break;
    }
    case "roundFailed":
      metrics.rounds.inc({ outcome: "failed" });
      break;
    case "commandFailed":
    case "fault":
    case "storeLost":
      metrics.errors.inc({ code: event.error.code });
      break;
  }
}

function observe({ seconds }: Metrics, stages: Readonly<Record<string, number>>): void {
  for (const [stage, took] of Object.entries(stages)) seconds.observe({ stage }, took);
}

/** Serves an agent's metrics at `/metrics`. `TB_ADDRESS_IN_USE` if the port is taken. */
export async function serveMetrics(agent: Agent, options: MetricsOptions = {}): Promise<MetricsServer> {
  const { port = 0, host = "127.0.0.1" } = options;
  const registry = agentMetrics(agent);
  const server = createServer(async (request, response) => {
    if (request.method !== "GET" || request.url !== "/metrics") {
      response.writeHead(404).end();
      return;
    }
    response.writeHead(200, { "content-type": registry.contentType }).end(await registry.metrics());
  });
  await listen(server, port, host);
  server.unref();
  const close = () =>
    new Promise<void>((resolve) => {
      server.close(() => resolve());
      server.closeAllConnections();
    });
  return { registry, port: (server.address() as AddressInfo).port, close, [Symbol.asyncDispose]: close };
}

function listen(server: Server, port: number, host: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", (cause: NodeJS.ErrnoException) => {
      const code = cause.code === "EADDRINUSE" ? "TB_ADDRESS_IN_USE" : "TB_SYSTEM";
      reject(
        new TensorBusError(code, `metrics cannot be served at ${host}:${port}: ${cause.message}`, {
          cause,
          details: { host, port },
        }),
      );
    });
    server.listen(port, host, () => resolve());
  });
}
