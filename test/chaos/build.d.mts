interface BuiltPrograms {
  /** The bundle of a program. */
  at(name: string): string;
  remove(): void;
}

export function buildPrograms(names: readonly string[]): Promise<BuiltPrograms>;
