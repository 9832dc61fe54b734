import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { resolveEndpoint } from "../../src/transport/endpoint.ts";
import { loadSecrets } from "../../src/transport/secret.ts";

const bytes = (...texts: string[]) => texts.map((text) => Buffer.from(text));

describe("secrets", () => {
  let folder: string;
  const file = (name: string, text: string) => {
    writeFileSync(join(folder, name), text, { mode: 0o600 });
    return join(folder, name);
  };
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "tensorbus-secret-"));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  const [a, b, c, d] = ["a", "b", "c", "d"].map((letter) => `${letter}: a secret of the tests`) as [
    string,
    string,
    string,
    string,
  ];

  test("come from the option, its file, the variable, or the variable's file, in this order", async () => {
    const environment = { TENSOR_BUS_SECRET: c, TENSOR_BUS_SECRET_FILE: file("d", `${d}\n`) };
    const secretFile = file("b", `${b}\n`);
    expect(await loadSecrets({ secret: a, secretFile }, true, environment)).toEqual(bytes(a));
    expect(await loadSecrets({ secretFile }, true, environment)).toEqual(bytes(b));
    expect(await loadSecrets({}, true, environment)).toEqual(bytes(c));
    const { TENSOR_BUS_SECRET_FILE } = environment;
    expect(await loadSecrets({}, true, { TENSOR_BUS_SECRET_FILE })).toEqual(bytes(d));
  });

  test("are one or two of at least 16 bytes, a line each in text", async () => {
    expect(await loadSecrets({ secret: [a, Buffer.from(b)] }, true)).toEqual(bytes(a, b));
    expect(await loadSecrets({ secretFile: file("two", `${a}\r\n${b}\r\n`) }, true)).toEqual(bytes(a, b));
    expect(await loadSecrets({ secret: "x".repeat(16) }, true)).toHaveLength(1);
    const wrong = [
      { secret: [] },
      { secret: [a, b, c] },
      { secret: "" },
      { secret: "x".repeat(15) },
      { secret: [a, "short"] },
      { secretFile: file("empty", "\n") },
      { secretFile: file("three", `${a}\n${b}\n${c}\n`) },
      { secretFile: file("short", "short\n") },
    ];
    for (const options of wrong) {
      await expect(loadSecrets(options, true)).rejects.toMatchObject({ code: "TB_AUTH" });
    }
  });

  test("a file that cannot be read is TB_FILE with its name", async () => {
    const secretFile = join(folder, "missing");
    await expect(loadSecrets({ secretFile }, true)).rejects.toMatchObject({
      code: "TB_FILE",
      details: { file: secretFile },
    });
  });

  test("without any, loopback has the empty one, and nothing else is allowed", async () => {
    expect(await loadSecrets({}, true, {})).toEqual([new Uint8Array(0)]);
    await expect(loadSecrets({}, false, {})).rejects.toMatchObject({ code: "TB_AUTH" });
  });

  test("are in no error", async () => {
    const error = await loadSecrets({ secret: ["hunter2", "hunter3", "hunter4"] }, true).catch(String);
    expect(error).not.toMatch(/hunter/);
  });
});

describe("endpoints", () => {
  test.each([
    [{}, "127.0.0.1", true, { host: "127.0.0.1" }],
    [{ host: "::1" }, "::1", true, { host: "::1" }],
    [{ host: "127.3.2.1" }, "127.3.2.1", true, { host: "127.3.2.1" }],
    [{ host: "10.1.2.3" }, "10.1.2.3", false, { host: "10.1.2.3" }],
    [{ host: "0.0.0.0", advertise: "node7" }, "0.0.0.0", false, { host: "node7" }],
    [{ host: "::", advertise: "[fd00::7]:9000" }, "::", false, { host: "fd00::7", port: 9000 }],
    [{ advertise: "node7:9000" }, "127.0.0.1", true, { host: "node7", port: 9000 }],
    [{ advertise: "fd00::7" }, "127.0.0.1", true, { host: "fd00::7" }],
  ])("%j listens on %s", async (options, listenHost, loopback, advertised) => {
    expect(await resolveEndpoint(options)).toEqual({ listenHost, loopback, advertised });
  });

  test.each([
    "0.0.0.0",
    "::",
    "0:0::0",
  ])("%s alone says nothing that others could connect to", async (host) => {
    await expect(resolveEndpoint({ host })).rejects.toMatchObject({ code: "TB_ADDRESS" });
  });

  test("a name to listen on that cannot be resolved is TB_ADDRESS, with the name", async () => {
    // An empty label: no name server has to be asked.
    await expect(resolveEndpoint({ host: "no..name" })).rejects.toMatchObject({
      code: "TB_ADDRESS",
      message: expect.stringMatching(/no\.\.name .* cannot be resolved/),
    });
  });

  test.each([
    "",
    "node7:0",
    "node7:65536",
    "node7:",
    "a:b:c",
    "[fd00::7",
  ])("%j cannot be advertised", async (advertise) => {
    await expect(resolveEndpoint({ advertise })).rejects.toMatchObject({ code: "TB_ADDRESS" });
  });
});
