/** Options of esbuild for the oldest Node.js that is supported. */
export const nodeBundle: {
  readonly bundle: true;
  readonly format: "esm";
  readonly platform: "node";
  readonly target: string;
};
