import full from "./vitest.config.ts";

/** The package as it is published: it builds, packs and installs, which takes most of a minute. */
export default {
  ...full,
  test: { ...full.test, include: ["test/package/**/*.test.ts"], exclude: [], globalSetup: [] },
};
