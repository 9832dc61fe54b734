// npm run bench:against -- FOLDER [--parts N] [--queues N] [--only question,round,registering,queue] [--json FILE]
//
// Compares this build with that of another commit, which stands built (`npm ci && npm run build`) in FOLDER: what a question
// costs, queueing a command, a round without a version, registering 10,000 tensors. Both clusters live at once and are
// measured in turn, in parts shorter than what else happens on a machine, and each part is compared with the one beside it.
// Ends with 1 if a figure is beyond its limit. With --only, what is not named is not measured.
import { execFileSync, fork } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { build } from "esbuild";
import { nodeBundle } from "../../scripts/node-bundle.mjs";

const here = import.meta.dirname;
const figures = ["question", "round", "registering", "queue"];
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    parts: { type: "string", default: "40" },
    queues: { type: "string", default: "4" },
    only: { type: "string", default: figures.join(",") },
    json: { type: "string" },
  },
});
const only = values.only.split(",");
if (positionals.length !== 1 || !only.every((name) => figures.includes(name))) {
  console.error(
    `usage: npm run bench:against -- FOLDER [--parts N] [--queues N] [--only ${figures.join(",")}] [--json FILE]`,
  );
  process.exit(2);
}
const folders = { before: resolve(positionals[0]), now: dirname(dirname(here)) };
const parts = Number(values.parts);

const median = (list) => {
  const sorted = list.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};

/** Two agents and their clients, of one build. */
class Cluster {
  #children = [];
  #store;
  clients = [];

  static async start(folder, scratch) {
    const cluster = new Cluster();
    const { serveTcpStore } = await import(pathToFileURL(join(folder, "dist/index.js")).href);
    cluster.#store = await serveTcpStore({ host: "127.0.0.1", port: 0 });
    for (const role of ["agent", "client"]) {
      const started = [0, 1].map((rank) => cluster.#start(role, rank, folder, scratch));
      const children = await Promise.all(started);
      if (role === "client") cluster.clients = children;
    }
    return cluster;
  }

  async #start(role, rank, folder, scratch) {
    const path = join(scratch, `rank-${rank}`);
    const child = fork(
      join(here, "rank.mjs"),
      [
        JSON.stringify({
          build: folder,
          role,
          rank,
          storePort: this.#store.port,
          commandQueuePath: join(path, "queue"),
          agentStatePath: join(path, "state"),
        }),
      ],
      { serialization: "advanced" },
    );
    this.#children.push(child);
    await answerOf(child);
    return child;
  }

  /** Milliseconds from when the later of both ranks has begun to when the later one is done. */
  async together(command) {
    const times = await this.all(command);
    const latest = (name) => times.map((one) => one[name]).reduce((a, b) => (a > b ? a : b));
    return Number(latest("endedNs") - latest("startedNs")) / 1e6;
  }

  all(command) {
    return Promise.all(this.clients.map((client) => ask(client, command)));
  }

  async end() {
    for (const child of this.#children.reverse()) {
      child.disconnect();
      await once(child, "exit");
    }
    await this.#store.close();
  }
}

function answerOf(child) {
  return new Promise((done, failed) => {
    const ended = () => failed(new Error(`process ${child.pid} ended`));
    child.once("exit", ended);
    child.once("message", (answer) => {
      child.off("exit", ended);
      done(answer);
    });
  });
}

function ask(child, command) {
  const answer = answerOf(child);
  child.send(command);
  return answer;
}

/** As many pairs of measurements, whose order alternates: what each side took. */
async function inTurn(count, measure) {
  const times = { before: [], now: [] };
  for (let i = 0; i < count; i++) {
    const order = i % 2 === 0 ? ["before", "now"] : ["now", "before"];
    for (const which of order) times[which].push(await measure(which, i));
  }
  return times;
}

const results = [];
/** What is compared are pairs: the median of their differences, and of their ratios. */
function conclude(name, unit, times, { share, absolute = 0 }) {
  const before = median(times.before);
  const now = median(times.now);
  const difference = median(times.now.map((time, i) => time - times.before[i]));
  const ratio = median(times.now.map((time, i) => time / times.before[i]));
  const holds = ratio <= 1 + share || difference <= absolute;
  const limit = `${100 * share} %${absolute === 0 ? "" : ` or ${absolute} ${unit}`}`;
  results.push({ name, unit, pairs: times.now.length, before, now, ratio, difference, limit, holds });
  const change = `${ratio >= 1 ? "+" : ""}${(100 * (ratio - 1)).toFixed(1)} %`;
  console.log(
    `${holds ? "holds" : "FAILS"}  ${name}: ${before.toFixed(2)} -> ${now.toFixed(2)} ${unit} (${change}, limit ${limit})`,
  );
}

const batches = {
  question: { tensors: 1, rows: 4, columns: 4 },
  large: { tensors: 75, rows: 874, columns: 1024 },
};

async function compareClusters(clusters) {
  const each = (command) =>
    Promise.all([clusters.before.all(command), clusters.now.all(command)]).then(() => {});
  for (const [batch, shape] of Object.entries(batches)) {
    await each({ act: "allocate", batch, ...shape });
    await each({ act: "register", batch });
  }
  if (only.includes("question")) {
    await each({ act: "questions", batch: "question", milliseconds: 1000 });
    await compareQuestions(clusters);
  }
  if (only.includes("round")) await compareRounds(clusters);
  if (only.includes("registering")) await compareRegistering(clusters);
}

async function compareQuestions(clusters) {
  const question = { act: "questions", batch: "question", milliseconds: 200 };
  const questions = await inTurn(parts, async (which) =>
    median(await ask(clusters[which].clients[0], question)),
  );
  conclude("a question, there and back", "us", questions, { share: 0.05 });
}

async function compareRounds(clusters) {
  let value = 0;
  const rounds = (batch, count) => async (which) => {
    const times = [];
    for (let i = 0; i < count; i++) {
      value += 1;
      times.push(await clusters[which].together({ act: "round", batch, value }));
    }
    return median(times);
  };
  await inTurn(2, rounds("large", 2));
  const [small, large] = [
    await inTurn(parts, rounds("question", 25)),
    await inTurn(parts, rounds("large", 1)),
  ];
  conclude("an unversioned round of 64 bytes", "ms", small, { share: 0.02, absolute: 0.2 });
  conclude("an unversioned round of 256 MiB in 75 tensors", "ms", large, { share: 0.02 });
}

async function compareRegistering(clusters) {
  const registering = await inTurn(Math.ceil(parts / 4), async (which, i) => {
    const batch = `many ${i}`;
    await clusters[which].all({ act: "allocate", batch, tensors: 10_000, rows: 4, columns: 4 });
    const time = await clusters[which].together({ act: "register", batch });
    await clusters[which].all({ act: "drop", batch });
    return time;
  });
  conclude("registering 10,000 tensors", "ms", registering, { share: 0.1 });
}

/** Each build's own benchmark of the queue, one whole run of it a measurement. */
async function compareQueues(count) {
  const workshops = {};
  for (const [which, folder] of Object.entries(folders)) {
    mkdirSync(join(folder, "build"), { recursive: true });
    workshops[which] = mkdtempSync(join(folder, "build", "bench-against-"));
    await build({
      entryPoints: [join(folder, "bench/queue/roles.ts")],
      outdir: workshops[which],
      ...nodeBundle,
      packages: "external",
      logLevel: "warning",
    });
  }
  try {
    const runs = await inTurn(count, async (which) => {
      const child = fork(join(workshops[which], "roles.js"), [], { serialization: "advanced" });
      const [message] = await once(child, "message");
      await once(child, "exit");
      return message;
    });
    for (const [name, called] of [
      ["queue/round trip back to back", "a command through the bare queue, there and back"],
      ["queue/enqueue back to back", "enqueueing a command"],
    ]) {
      const of = (list) => list.map((results) => results.find((one) => one.name === name).median);
      conclude(called, "us", { before: of(runs.before), now: of(runs.now) }, { share: 0.05 });
    }
  } finally {
    for (const workshop of Object.values(workshops)) rmSync(workshop, { recursive: true, force: true });
  }
}

const scratch = mkdtempSync(join(tmpdir(), "tensorbus-against-"));
try {
  if (only.some((name) => name !== "queue")) {
    const clusters = {};
    for (const [which, folder] of Object.entries(folders)) {
      clusters[which] = await Cluster.start(folder, join(scratch, which));
    }
    await compareClusters(clusters);
    for (const cluster of Object.values(clusters)) await cluster.end();
  }
  if (only.includes("queue")) await compareQueues(Number(values.queues));
} finally {
  rmSync(scratch, { recursive: true, force: true });
}

const commitOf = (folder) => {
  try {
    return execFileSync("git", ["rev-parse", "HEAD"], { cwd: folder, encoding: "utf8" }).trim();
  } catch {
    return null;
  }
};
const report = {
  before: commitOf(folders.before),
  now: commitOf(folders.now),
  machine: `${cpus().length} × ${cpus()[0]?.model}`,
  node: process.version,
  date: new Date().toISOString(),
  results,
};
if (values.json !== undefined) writeFileSync(values.json, `${JSON.stringify(report, undefined, 2)}\n`);
process.exitCode = results.every(({ holds }) => holds) ? 0 : 1;
