/** What goes wrong: each fault of a scenario, done to a cluster, and undone after its time. */
import type { Cluster } from "../world/cluster.ts";
import type { Job } from "./job.ts";
import type { Fault } from "./scenario.ts";

/** Does it; what undoes it, where anything does. */
export function inject(fault: Fault, cluster: Cluster, job: Job): (() => void) | undefined {
  const { scenario, store, network, trace } = cluster;
  const { kind, lastsMs } = fault;
  const rank = scenario.ranks[fault.who]!;
  const other = scenario.ranks[fault.other]!;
  const agent = cluster.agentOf(rank);
  const say = (what: string) => trace.say("FAULT", `${what} (for ${lastsMs} ms)`);
  switch (kind) {
    case "kill agent":
    case "kill host":
      agent.kill(kind === "kill host");
      return () => {
        if (!agent.isAlive) agent.start();
      };
    case "stop agent": {
      if (agent.process.state !== "running") return undefined;
      const over = job.ledger.stopped(agent);
      agent.stop();
      return () => {
        over();
        agent.goOn();
      };
    }
    case "kill client": {
      const side = cluster.launch.sides[fault.side].includes(rank)
        ? fault.side
        : fault.side === "A"
          ? "B"
          : "A";
      job.killClient(rank, side);
      return () => job.replaceClient(rank, side);
    }
    case "cut":
    case "cut one way": {
      if (rank === other) return undefined;
      say(`nothing goes from rank ${rank} to rank ${other}${kind === "cut" ? ", nor back" : ""}`);
      network.cut(rank, other);
      if (kind === "cut") network.cut(other, rank);
      return () => {
        trace.say("FAULT", `the way between ranks ${rank} and ${other} is mended`);
        network.mend(rank, other);
        network.mend(other, rank);
      };
    }
    case "slow store":
      say("the store is slow");
      store.slowness = 20;
      return () => {
        store.slowness = 1;
      };
    case "stall store":
      say("the store does not answer");
      store.stall();
      return () => store.goOn();
    case "restart store":
    case "wipe store":
      if (store.state === "down") return undefined;
      say(kind === "wipe store" ? "the store ends, and forgets" : "the store ends");
      store.end();
      return () => {
        // The end of all faults may have come first: a store that runs does not forget.
        if (store.state !== "down") return;
        trace.say("FAULT", "the store is there again");
        store.start(kind === "restart store");
      };
    case "cut store":
    case "cut store one way": {
      say(`rank ${rank} ${kind === "cut store" ? "does not reach the store" : "does not hear the store"}`);
      const cut = [...agent.stores];
      for (const client of cut) client.cut({ there: kind === "cut store", back: true });
      return () => {
        for (const client of cut) client.mend();
      };
    }
    case "drain agent":
      agent.drain();
      return () => {
        if (!agent.isAlive) agent.start();
      };
    case "call twice":
      job.callTwice(rank);
      return undefined;
    case "abort ahead":
      job.abortNext(rank);
      return undefined;
    case "abort":
      job.cancelOne(rank);
      return undefined;
    case "clean up":
      job.cleanUpOne(rank);
      return undefined;
  }
}
