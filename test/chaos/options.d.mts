export const usage: string;

interface Options {
  readonly faults: string;
  readonly seed: string;
  readonly seconds: string;
  readonly only: string;
  readonly transports: string;
  readonly json?: string;
  readonly add: boolean;
  readonly help: boolean;
}

/** What `parseArgs` throws if an option is unknown. */
export function optionsOf(argv: readonly string[]): Options;
