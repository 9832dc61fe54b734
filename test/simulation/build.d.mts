/** By the path of a module from the root, texts that are replaced in it, each of which must be there exactly once. */
export type Mutations = Readonly<Record<string, readonly (readonly [from: string, to: string])[]>>;

/** Gives the path of the bundle. */
export function buildSimulation(options: {
  readonly outfile: string;
  readonly mutations?: Mutations;
}): Promise<string>;
