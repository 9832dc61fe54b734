import { shared } from "./vitest.config.ts";

/** The package as it is published: it builds, packs and installs, which takes most of a minute. */
export default { test: { ...shared, include: ["test/package/**/*.test.ts"] } };
