// How esbuild bundles what runs in Node.js: the package itself, and the programs of tests and benchmarks.

export const nodeBundle = { bundle: true, format: "esm", platform: "node", target: "node20.19" };
