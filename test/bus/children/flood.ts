/** A client process that sends many commands, several at once, and says how they ended. */
import { EchoClient } from "./echo-client.ts";

interface Flood {
  readonly queue: string;
  readonly state: string;
  readonly count: number;
  readonly window: number;
}
const { count, window, ...paths }: Flood = JSON.parse(process.argv.at(-1)!);
const client = await EchoClient.connect(paths, { capacity: 64 });

let wrong = 0;
let expected = 0;
async function send(batch: number): Promise<void> {
  const command = batch % 3 === 0 ? client.makeQuestion(batch) : client.makeCommand(batch);
  const answer = (await client.request(command)) as { count: number; batch: number };
  expected += 1;
  // The agent counts this client's commands as they run: in order, each once.
  if (answer.count !== batch + 1 || answer.batch !== batch) wrong += 1;
}

process.once("message", async () => {
  const pending = new Set<Promise<void>>();
  for (let batch = 0; batch < count; batch++) {
    const sent: Promise<void> = send(batch).finally(() => pending.delete(sent));
    pending.add(sent);
    if (pending.size >= window) await Promise.race(pending);
  }
  await Promise.all(pending);
  await client.close();
  process.send?.({ answered: expected, wrong });
  process.disconnect();
});
process.send?.("ready");
