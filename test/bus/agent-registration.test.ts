/** Registrations that fail, or lose their client, when they were all but done. */
import { afterEach, describe, expect, it, vi } from "vitest";
import { State } from "../../src/bus/queue/state.ts";
import { TensorBusError } from "../../src/errors.ts";
import { AgentWorld, arrayOf, failureOf, joinPair, type Side, tensor } from "./kit/agent-kit.ts";

const trainer: Side = { name: "trainer", ranks: [0], placements: ["R"] };
const inference: Side = { name: "inference", ranks: [1], placements: ["R"] };

afterEach(() => {
  vi.restoreAllMocks();
});

/** Something that happens right before the first write of a batch to an agent's state. */
function beforeRemembering(act: () => Promise<void>): void {
  const { write } = State.prototype;
  let done = false;
  vi.spyOn(State.prototype, "write").mockImplementation(async function (this: State, what, work, deadline) {
    if (what === "remembering a batch" && !done) {
      done = true;
      await act();
    }
    return write.call(this, what, work as () => never, deadline);
  });
}

describe("a registration", () => {
  it("that cannot be written down fails with why, lets go of its memory, and tells the other side", async () => {
    await using world = await AgentWorld.start(2);
    const [[sender], [receiver]] = await joinPair(world, [trainer, inference]);
    const [from, to] = [tensor([8], (i) => i), tensor([8])];
    beforeRemembering(async () => {
      throw new TensorBusError("TB_NO_SPACE", "the state is full");
    });
    const ends = await Promise.allSettled([
      sender!.registerTensors("m", [[from, "weights"]]),
      receiver!.registerTensors("m", [[to, "weights"]]),
    ]);
    const failed = ends.filter((end) => end.status === "rejected");
    expect(failed).toMatchObject([{ reason: { code: "TB_NO_SPACE" } }]);
    const other = ends.find((end) => end.status === "fulfilled")!.value;
    const lost = await failureOf(
      other.transfer(other.client === sender ? "send" : "recv", { blocking: true }),
    );
    expect(lost.code).toMatch(/^TB_(PEER_LOST|BATCH_UNKNOWN)$/);
    expect(world.events.flat().filter(({ kind }) => kind === "fault")).toEqual([]);
    // Nothing of it is in the way of the next one.
    const [send, receive] = await Promise.all([
      sender!.registerTensors("m", [[from, "weights"]]),
      receiver!.registerTensors("m", [[to, "weights"]]),
    ]);
    await Promise.all([
      send.transfer("send", { blocking: true }),
      receive.transfer("recv", { blocking: true }),
    ]);
    expect([...arrayOf(to)]).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
  });

  it("with a tensor that its pair's placement does not fit is every rank's error", async () => {
    await using world = await AgentWorld.start(3);
    const columns: Side = { name: "trainer", ranks: [0, 1], placements: ["S(1)"] };
    const whole: Side = { name: "inference", ranks: [2], placements: ["R"] };
    const clients = (await joinPair(world, [columns, whole])).flat();
    const shapes = [
      [4, 2],
      [4, 2],
      [4, 4],
    ].map((matrix) => [matrix, [4]]);
    const calls = clients.map((client, at) =>
      client.registerTensors(
        "m",
        shapes[at]!.map((shape) => [tensor(shape), "weights"]),
      ),
    );
    for (const failure of await Promise.all(calls.map(failureOf))) {
      expect(failure).toMatchObject({ code: "TB_PLACEMENT", details: { placement: "S(1)" } });
    }
  });

  it("whose client ends when it is all but done leaves no batch behind", async () => {
    await using world = await AgentWorld.start(2);
    const [[sender], [receiver]] = await joinPair(world, [trainer, inference]);
    let closing: Promise<void> | undefined;
    beforeRemembering(async () => {
      closing = Promise.all([sender!.close(), receiver!.close()]).then(() => {});
      const gone = () => world.events.flat().filter(({ kind }) => kind === "clientEnded").length;
      while (gone() < 2) await new Promise((resolve) => setTimeout(resolve, 1));
    });
    const ends = await Promise.allSettled([
      sender!.registerTensors("m", [[tensor([8]), "weights"]]),
      receiver!.registerTensors("m", [[tensor([8]), "weights"]]),
    ]);
    await closing;
    expect(ends).toMatchObject([
      { status: "rejected", reason: { code: "TB_CLOSED" } },
      { status: "rejected", reason: { code: "TB_CLOSED" } },
    ]);
    const again = await joinPair(world, [trainer, inference]);
    const handlers = await Promise.all(
      again.map(([client]) => client!.registerTensors("m", [[tensor([8]), "weights"]])),
    );
    expect(handlers.every(({ isOpen }) => isOpen)).toBe(true);
  });
});
