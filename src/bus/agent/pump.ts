/**
 * Takes commands off the queue whenever the process is woken, has each run, writes how it ended, wakes its client and only
 * then removes it. Commands run side by side: one that takes long holds up none behind it, and they begin in the order of
 * the queue.
 */
import { TensorBusError } from "../../errors.ts";
import { type Bell, openBell, type Waker } from "../process/semaphore.ts";
import type { ClientIdentity, CommandHeader } from "../queue/command-header.ts";
import type { CommandQueue, StartedCommand } from "../queue/command-queue.ts";
import type { Command } from "../queue/commands.ts";
import type { Outcome, State } from "../queue/state.ts";

interface PumpOptions {
  /** Whose commands they are. */
  readonly rank?: number;
  readonly queue: CommandQueue;
  readonly state: State;
  /** The agent's own: clients post it after they have queued a command. */
  readonly waker: Waker;
  /** Runs a command; what it gives, or throws, is the command's result. */
  readonly run: (command: Command) => unknown;
  /** Called when clients have come or gone: `ClientKeeper.update`. */
  readonly onClients?: () => void;
  /** Told of failures that belong to no command: a queue that is stuck, a message that nobody can be answered for. */
  readonly onFault: (error: TensorBusError) => void;
}

interface Ended {
  readonly started: StartedCommand;
  readonly outcome: Outcome;
}

/** What a client is told without having asked: how something that it has, and whose number this is, has ended. */
interface News {
  readonly client: Pick<ClientIdentity, "id" | "wake">;
  readonly id: bigint;
  readonly error: TensorBusError;
}

/**
 * Milliseconds that an answered command may stay in the queue: the next one's transaction removes it too, unless none comes
 * so soon. Nobody waits for that; an agent that dies meanwhile leaves a result that stands.
 */
const lingerMs = 50;
/** Milliseconds after which a full file system is tried again: somebody may have made room. */
const fullMs = 200;
/** Commands started in one transaction. */
const batchSize = 64;

function asError(error: unknown): TensorBusError {
  if (error instanceof TensorBusError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new TensorBusError("TB_SYSTEM", message, { cause: error });
}

/** Runs the commands of a queue that this process has claimed. */
export class CommandPump implements AsyncDisposable {
  readonly #options: PumpOptions;
  readonly #stopListening: () => void;
  readonly #bells = new Map<string, Bell>();
  readonly #running = new Set<Promise<void>>();
  #ended: Ended[] = [];
  #news: News[] = [];
  #finished: bigint[] = [];
  /** Up to this position, questions were begun where they stood. */
  #asked = 0n;
  #working: Promise<void> | undefined;
  #linger: NodeJS.Timeout | undefined;
  #woken = false;
  #batchSize = batchSize;
  #stopped = false;

  constructor(options: PumpOptions) {
    this.#options = options;
    this.#stopListening = options.waker.onWake(() => this.wake());
    // Commands that were queued before this agent came have posted another agent's semaphore.
    this.wake();
  }

  /** Looks at the queue, now or once the work under way is done. */
  wake(): void {
    this.#woken = true;
    this.#working ??= this.#work().finally(() => {
      this.#working = undefined;
      // Woken after the last look, but before this.
      if (this.#woken) this.wake();
    });
  }

  /** Tells clients something that they have not asked for; it stands as a result does, until they have read it. */
  tell(news: readonly News[]): void {
    if (this.#stopped) return;
    this.#news.push(...news);
    if (news.length > 0) this.wake();
  }

  /** Takes no more commands; resolves when those that were started have ended and are answered. */
  async drain(): Promise<void> {
    this.#stopped = true;
    this.#stopListening();
    while (this.#working !== undefined || this.#running.size > 0) {
      await Promise.all([this.#working, ...this.#running]);
    }
    clearTimeout(this.#linger);
    await this.#options.queue.finish(this.#finished.splice(0));
  }

  /** Forgets what it holds for a client that has ended. */
  forget(wake: string): void {
    this.#bells.get(wake)?.close();
    this.#bells.delete(wake);
  }

  async close(): Promise<void> {
    try {
      await this.drain();
    } finally {
      for (const bell of this.#bells.values()) bell.close();
      this.#bells.clear();
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #work(): Promise<void> {
    clearTimeout(this.#linger);
    while (this.#woken || this.#ended.length > 0 || this.#news.length > 0) {
      try {
        if (this.#woken) await this.#take();
        await this.#answer();
      } catch (error) {
        const fault = asError(error);
        this.#options.onFault(fault);
        // Nothing was lost: what failed has not happened, and waits its own deadline when it is tried again.
        if (fault.code !== "TB_QUEUE_STUCK" || this.#stopped) {
          this.#setBack(fault);
          return;
        }
        this.#woken = true;
      }
    }
    if (this.#finished.length > 0) this.#linger = setTimeout(() => this.wake(), lingerMs);
  }

  /** Answers that cannot be written. */
  #setBack(fault: TensorBusError): void {
    // Clients that wait for an answer look for themselves, and find the damage.
    if (fault.code === "TB_BUS_FORMAT") {
      this.#tell(this.#ended.map(({ started }) => started.header));
      for (const bell of this.#bells.values()) bell.ring();
    }
    if (this.#stopped) {
      // Whoever holds the queue up may do so for ever; clients learn of the end by the agent's lock.
      this.#woken = false;
    } else if (fault.code === "TB_NO_SPACE") {
      // One command at a time can be taken off a queue that is full.
      this.#batchSize = 1;
      this.#linger = setTimeout(() => this.wake(), fullMs);
    }
  }

  /** Answers questions, which are marked in no queue first, so that their client waits for one write less. */
  async #answerQuestions(): Promise<void> {
    const questions = this.#options.queue.questions(batchSize, this.#asked);
    if (questions.length === 0) return;
    this.#asked = questions.at(-1)!.position;
    for (const question of questions) this.#begin(question);
    await this.#answer();
  }

  /** Starts what the queue holds, removing in the same transaction what has been answered. */
  async #take(): Promise<void> {
    this.#woken = false;
    if (!this.#stopped) await this.#answerQuestions();
    const finished = this.#finished;
    const max = this.#stopped ? 0 : this.#batchSize;
    const batch = await this.#options.queue.dequeue(max, finished);
    this.#batchSize = batchSize;
    const { started, dropped } = batch;
    this.#finished = this.#finished.slice(finished.length);
    for (const { error } of dropped) this.#options.onFault(error);
    for (const command of started) {
      // A question that was not answered at once is under way already.
      if (command.position > this.#asked) this.#begin(command);
    }
    if (batch.clientsChanged) this.#options.onClients?.();
    // Others may wait behind a full batch without posting again.
    this.#woken ||= max > 0 && started.length + dropped.length === max;
  }

  #begin(started: StartedCommand): void {
    const { command, error } = started;
    if (command === undefined) {
      this.#end(started, { ok: false, error: this.#named(error!) });
      return;
    }
    let result: unknown;
    try {
      result = this.#options.run(command);
    } catch (thrown) {
      this.#end(started, { ok: false, error: asError(thrown) });
      return;
    }
    if (!(result instanceof Promise)) {
      this.#end(started, { ok: true, value: result });
      return;
    }
    const running: Promise<void> = result
      .then(
        (value) => this.#end(started, { ok: true, value }),
        (thrown) => this.#end(started, { ok: false, error: asError(thrown) }),
      )
      .finally(() => {
        this.#running.delete(running);
        this.wake();
      });
    this.#running.add(running);
  }

  /** A command that was not begun failed on this rank. */
  #named({ code, message, details, cause }: TensorBusError): TensorBusError {
    const { rank } = this.#options;
    return new TensorBusError(code, message, {
      details: { ...(rank === undefined ? {} : { rank }), ...details },
      cause,
    });
  }

  #end(started: StartedCommand, outcome: Outcome): void {
    this.#ended.push({ started, outcome });
  }

  /** Writes the results that are there, in one transaction, and wakes whose they are. */
  async #answer(): Promise<void> {
    // Not the lists themselves, to which is added what ends between the writing and the end of the wait for it.
    const ended = [...this.#ended];
    const news = [...this.#news];
    if (ended.length === 0 && news.length === 0) return;
    const { state } = this.#options;
    await state.write("writing results", () => {
      for (const { client, id, error } of news) state.putResult(client.id, id, { ok: false, error });
      for (const { started, outcome } of ended) {
        const { client, id, acknowledged } = started.header;
        state.putResult(client.id, id, outcome);
        state.removeResults(client.id, acknowledged);
      }
    });
    this.#ended = this.#ended.slice(ended.length);
    this.#news = this.#news.slice(news.length);
    this.#finished.push(...ended.map(({ started }) => started.position));
    this.#tell([...news, ...ended.map(({ started }) => started.header)]);
  }

  #tell(headers: readonly { readonly client: Pick<ClientIdentity, "wake"> }[]): void {
    for (const wake of new Set(headers.map(({ client }) => client.wake))) {
      try {
        let bell = this.#bells.get(wake);
        if (bell === undefined) {
          bell = openBell(wake);
          this.#bells.set(wake, bell);
        }
        bell.ring();
      } catch {
        // The client has ended: nobody reads its results, and its end is noticed by its lock.
      }
    }
  }
}

/**
 * For an agent that has claimed these paths, before it takes any command: ends what its predecessor had started. Commands
 * whose results stand are only removed; each other one ends as `TB_AGENT_LOST`. Then wakes their clients, and all who
 * wait for room. Gives the commands that were lost.
 */
export async function settleLeftovers(queue: CommandQueue, state: State): Promise<readonly CommandHeader[]> {
  const leftovers = queue.leftovers();
  const headers = leftovers.flatMap(({ header }) => (header === undefined ? [] : [header]));
  const lost = headers.filter(({ client, id }) => !state.hasResult(client.id, id));
  if (leftovers.length > 0) {
    await state.write("ending what the last agent had started", () => {
      for (const { client, id, semaphore } of lost) {
        const error = new TensorBusError("TB_AGENT_LOST", `the agent ended while it ran ${semaphore}`);
        state.putResult(client.id, id, { ok: false, error });
      }
    });
    await queue.finish(leftovers.map(({ position }) => position));
  }
  queue.tellWaiters(headers.map(({ client }) => client.wake));
  return lost;
}
