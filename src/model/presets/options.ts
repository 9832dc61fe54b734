import { TensorBusError } from "../../errors.ts";

/** `vllm:tp=4,ep`: a preset's name and its options, `true` for one without a value. */
export interface PresetText {
  readonly text: string;
  readonly name: string;
  readonly options: ReadonlyMap<string, string | true>;
}

export function presetError(
  what: string,
  details: Readonly<Record<string, unknown>> = {},
  cause?: unknown,
): TensorBusError {
  return new TensorBusError("TB_PRESET", what, { details, cause });
}

/** Reads `NAME:key=value,key`. `TB_PRESET` for what is malformed. */
export function parsePreset(text: string): PresetText {
  const colon = text.indexOf(":");
  const name = (colon < 0 ? text : text.slice(0, colon)).trim();
  const options = new Map<string, string | true>();
  const rest = colon < 0 ? "" : text.slice(colon + 1).trim();
  for (const part of rest === "" ? [] : rest.split(",")) {
    const equals = part.indexOf("=");
    const key = (equals < 0 ? part : part.slice(0, equals)).trim();
    const value = equals < 0 ? true : part.slice(equals + 1).trim();
    if (key === "" || value === "")
      throw presetError(`${text}: ${JSON.stringify(part)} is not an option: write KEY or KEY=VALUE`, {
        preset: text,
      });
    if (options.has(key))
      throw presetError(`${text}: option ${key} appears twice`, { preset: text, option: key });
    options.set(key, value);
  }
  return { text, name, options };
}

/** Takes options one by one; what is left over is unknown. */
export class OptionReader {
  readonly #preset: PresetText;
  readonly #taken = new Set<string>();

  constructor(preset: PresetText) {
    this.#preset = preset;
  }

  /** A number from 1 to 2^20, or what it is unless given. */
  count(key: string, absent: number | undefined, least = 1): number {
    const value = this.#take(key);
    if (value === undefined) {
      if (absent !== undefined) return absent;
      throw this.error(`needs ${key}=N`, { option: key });
    }
    return this.#number(key, value, least);
  }

  flag(key: string): boolean {
    const value = this.#take(key);
    if (value === undefined) return false;
    if (value === true) return true;
    if (value === "true" || value === "false") return value === "true";
    throw this.error(`option ${key} takes no value but true or false, not ${JSON.stringify(value)}`, {
      option: key,
    });
  }

  choice<T extends string>(key: string, choices: readonly T[], absent: T): T {
    const value = this.#take(key);
    if (value === undefined) return absent;
    if (choices.includes(value as T)) return value as T;
    throw this.error(`option ${key} is one of ${choices.join(", ")}, not ${JSON.stringify(value)}`, {
      option: key,
    });
  }

  /** Numbers between colons. */
  counts(key: string): number[] | undefined {
    const value = this.#take(key);
    if (value === undefined) return undefined;
    return String(value)
      .split(":")
      .map((part) => this.#number(key, part, 0));
  }

  finish(known: readonly string[]): void {
    for (const key of this.#preset.options.keys()) {
      if (this.#taken.has(key)) continue;
      throw this.error(`has no option ${JSON.stringify(key)}; it has ${known.join(", ")}`, {
        option: key,
        known,
      });
    }
  }

  error(what: string, details: Readonly<Record<string, unknown>> = {}): TensorBusError {
    return presetError(`${this.#preset.text} ${what}`, { preset: this.#preset.text, ...details });
  }

  #number(key: string, value: string | true, least: number): number {
    const number = value !== true && /^\d{1,7}$/.test(value) ? Number(value) : Number.NaN;
    if (number >= least && number <= 2 ** 20) return number;
    throw this.error(`needs a number of ${least} or more for ${key}, not ${JSON.stringify(value)}`, {
      option: key,
    });
  }

  #take(key: string): string | true | undefined {
    this.#taken.add(key);
    return this.#preset.options.get(key);
  }
}
