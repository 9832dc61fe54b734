/**
 * Connections between the sessions of a virtual transport: frames arrive in order and some time later, or stay on their way
 * while the way is cut; a connection that is silent for too long is lost, at each end when that end can know.
 */
import type { Random } from "../../kit/random.ts";
import type { Process, Timer } from "./scheduler.ts";

/** Time, as the network needs it: that of a `Scheduler`, or of Node.js. */
export interface Clock {
  readonly now: number;
  afterFor(owner: Process | undefined, ms: number, run: () => void): Timer;
}

/** What a session is to the network. */
export interface Station<F> {
  readonly rank: number;
  readonly process: Process | undefined;
  onFrame(link: Link<F>, frame: F): void;
  /** The connection has ended. Orderly: the other side has closed its session. */
  onEnd(link: Link<F>, orderly: boolean): void;
}

interface NetworkOptions {
  readonly clock: Clock;
  readonly random: Random;
  /** Milliseconds of a frame's way, at least and at most. */
  readonly latencyMs: readonly [number, number];
  /** A peer that is silent for so long is lost. */
  readonly peerTimeoutMs: number;
}

interface End<F> {
  readonly station: Station<F>;
  /** On their way to this end. */
  readonly coming: F[];
  /** Frames that have come to where the way is cut. */
  held: number;
  ended: boolean;
}

export class Link<F> {
  readonly #network: Network<F>;
  readonly #ends: readonly [End<F>, End<F>];
  broken = false;

  constructor(network: Network<F>, one: Station<F>, other: Station<F>) {
    this.#network = network;
    const end = (station: Station<F>): End<F> => ({ station, coming: [], held: 0, ended: false });
    this.#ends = [end(one), end(other)];
  }

  get stations(): readonly [Station<F>, Station<F>] {
    return [this.#ends[0].station, this.#ends[1].station];
  }

  /** The station at the other end. */
  peerOf(station: Station<F>): Station<F> {
    return this.#far(station).station;
  }

  isOpenFor(station: Station<F>): boolean {
    return !this.broken && !this.#near(station).ended;
  }

  send(from: Station<F>, frame: F): void {
    const near = this.#near(from);
    const far = this.#far(from);
    if (near.ended || this.broken) return;
    far.coming.push(frame);
    this.#network.travel(far.station.process, () => this.#arrive(far));
  }

  /** Frames that were held up go on. */
  release(): void {
    for (const end of this.#ends) {
      for (; end.held > 0; end.held--) this.#network.travel(end.station.process, () => this.#arrive(end));
    }
  }

  /** `orderly`: a station has closed its session, what it said before arrives. */
  close(from: Station<F>): void {
    const near = this.#near(from);
    const far = this.#far(from);
    if (near.ended) return;
    near.ended = true;
    this.#network.forget(this);
    this.#network.travel(far.station.process, () => this.#end(far, true));
  }

  /** It is no more; each end learns of it after so many milliseconds. */
  break(after: (end: Station<F>) => number): void {
    if (this.broken) return;
    this.broken = true;
    this.#network.forget(this);
    for (const end of this.#ends) {
      this.#network.later(end.station.process, after(end.station), () => this.#end(end, false));
    }
  }

  #arrive(end: End<F>): void {
    if (this.broken || end.ended) return;
    if (this.#network.isCut(this.peerOf(end.station).rank, end.station.rank)) {
      end.held++;
      return;
    }
    const frame = end.coming.shift();
    if (frame !== undefined) end.station.onFrame(this, frame);
  }

  #end(end: End<F>, orderly: boolean): void {
    if (end.ended) return;
    if (orderly) {
      // What was said before is heard before.
      while (end.coming.length > 0 && !end.ended) end.station.onFrame(this, end.coming.shift()!);
      if (end.ended) return;
    }
    end.ended = true;
    end.station.onEnd(this, orderly);
  }

  #near(station: Station<F>): End<F> {
    return this.#ends[0].station === station ? this.#ends[0] : this.#ends[1];
  }

  #far(station: Station<F>): End<F> {
    return this.#ends[0].station === station ? this.#ends[1] : this.#ends[0];
  }
}

export class Network<F> {
  readonly #options: NetworkOptions;
  /** Who can be reached, by rank. */
  readonly #stations = new Map<number, Station<F>>();
  readonly #links = new Set<Link<F>>();
  /** Ways that are cut, as "from>to", with how often they are. */
  readonly #cuts = new Map<string, number>();

  constructor(options: NetworkOptions) {
    this.#options = options;
  }

  get connections(): number {
    return this.#links.size;
  }

  open(station: Station<F>): void {
    this.#stations.set(station.rank, station);
  }

  close(station: Station<F>): void {
    if (this.#stations.get(station.rank) === station) this.#stations.delete(station.rank);
    for (const link of this.#linksOf(station)) link.close(station);
  }

  /** The connection with a rank, made if there is none; `undefined` while it cannot be reached. */
  connect(station: Station<F>, rank: number): Link<F> | undefined {
    const other = this.#stations.get(rank);
    if (other === undefined) return undefined;
    for (const link of this.#linksOf(station)) {
      if (link.peerOf(station) === other && link.isOpenFor(station)) return link;
    }
    if (this.isCut(station.rank, rank) || this.isCut(rank, station.rank)) return undefined;
    if (other.process?.state === "stopped") return undefined;
    const link = new Link(this, station, other);
    this.#links.add(link);
    return link;
  }

  /** The process behind a station has ended: its host says so, or nobody does. */
  died(station: Station<F>, isSilent: boolean): void {
    if (this.#stations.get(station.rank) === station) this.#stations.delete(station.rank);
    for (const link of this.#linksOf(station)) {
      link.break((end) => {
        const cut = this.isCut(station.rank, end.rank);
        return isSilent || cut ? this.#silenceMs() : this.#wayMs();
      });
    }
  }

  /** Nothing goes one way any more; what is silent for too long is lost. */
  cut(from: number, to: number): void {
    const key = wayOf(from, to);
    this.#cuts.set(key, (this.#cuts.get(key) ?? 0) + 1);
    const age = this.#cuts.get(key);
    for (const link of this.#linksBetween(from, to)) {
      this.later(undefined, this.#silenceMs(), () => {
        if (!link.broken && this.isCut(from, to) && this.#cuts.get(key) === age) this.#lose(link);
      });
    }
  }

  mend(from: number, to: number): void {
    this.#cuts.delete(wayOf(from, to));
    for (const link of this.#linksBetween(from, to)) link.release();
  }

  mendAll(): void {
    for (const key of [...this.#cuts.keys()]) {
      const [from, to] = key.split(">").map(Number) as [number, number];
      this.mend(from, to);
    }
  }

  isCut(from: number, to: number): boolean {
    return this.#cuts.size > 0 && this.#cuts.has(wayOf(from, to));
  }

  /** A process was stopped: whoever waits for it too long loses it. */
  stopped(process: Process): void {
    for (const link of this.#links) {
      if (!link.stations.some((station) => station.process === process)) continue;
      this.later(undefined, this.#silenceMs(), () => {
        if (process.state === "stopped" && !link.broken) this.#lose(link);
      });
    }
  }

  /** For a link: something is on its way to a process. */
  travel(owner: Process | undefined, arrive: () => void): void {
    this.#options.clock.afterFor(owner, this.#wayMs(), arrive);
  }

  later(owner: Process | undefined, ms: number, run: () => void): void {
    this.#options.clock.afterFor(owner, ms, run);
  }

  forget(link: Link<F>): void {
    this.#links.delete(link);
  }

  /** Who does not hear the other loses it first; the other hears of that, or is silent for as long. */
  #lose(link: Link<F>): void {
    const [one, other] = link.stations;
    link.break((end) => {
      const peer = end === one ? other : one;
      const isSilent = this.isCut(peer.rank, end.rank) || peer.process?.state === "stopped";
      return isSilent ? 0 : this.#wayMs();
    });
  }

  #linksOf(station: Station<F>): Link<F>[] {
    return [...this.#links].filter((link) => link.stations.includes(station));
  }

  #linksBetween(one: number, other: number): Link<F>[] {
    return [...this.#links].filter((link) => {
      const ranks = link.stations.map(({ rank }) => rank);
      return ranks.includes(one) && ranks.includes(other);
    });
  }

  #wayMs(): number {
    const { random, latencyMs } = this.#options;
    const [least, most] = latencyMs;
    return least + ((most - least) * random.integer(0, 1000)) / 1000;
  }

  #silenceMs(): number {
    const { random, peerTimeoutMs } = this.#options;
    return peerTimeoutMs * (1 + random.integer(0, 250) / 1000);
  }
}

function wayOf(from: number, to: number): string {
  return `${from}>${to}`;
}
