import { readFile } from "node:fs/promises";
import { TensorBusError } from "../errors.ts";

export interface SecretOptions {
  /** One secret, or two during a rotation: the first proves this side, both are accepted from others. */
  readonly secret?: string | Uint8Array | readonly (string | Uint8Array)[];
  /** A file with one secret a line, one or two lines. */
  readonly secretFile?: string;
}

/** Fewer can be guessed from one handshake that somebody has seen. */
const leastSecretBytes = 16;

/** The secret of a job that has none: all know it, so it is for loopback only. */
const noSecret: readonly Uint8Array[] = [new Uint8Array(0)];

/**
 * The secrets that a session proves and accepts: from the option, its file, `TENSOR_BUS_SECRET` or the file that
 * `TENSOR_BUS_SECRET_FILE` names, whichever comes first. If there is none, a loopback address gets the empty secret,
 * and any other is refused (`TB_AUTH`).
 */
export async function loadSecrets(
  options: SecretOptions,
  loopback: boolean,
  environment: NodeJS.ProcessEnv = process.env,
): Promise<readonly Uint8Array[]> {
  const secrets = await findSecrets(options, environment);
  if (secrets !== undefined) return secrets;
  if (loopback) return noSecret;
  throw new TensorBusError(
    "TB_AUTH",
    "listening beyond loopback needs a secret: set TENSOR_BUS_SECRET_FILE or TENSOR_BUS_SECRET",
  );
}

async function findSecrets(
  { secret, secretFile }: SecretOptions,
  environment: NodeJS.ProcessEnv,
): Promise<readonly Uint8Array[] | undefined> {
  if (secret !== undefined) {
    const list = Array.isArray(secret) ? secret : [secret];
    return checkSecrets(
      list.map((one: string | Uint8Array) => Buffer.from(one as Uint8Array)),
      "the option secret",
    );
  }
  if (secretFile !== undefined) return readSecrets(secretFile);
  const { TENSOR_BUS_SECRET: text, TENSOR_BUS_SECRET_FILE: file } = environment;
  if (text !== undefined) return checkSecrets(linesOf(text), "TENSOR_BUS_SECRET");
  if (file !== undefined) return readSecrets(file);
  return undefined;
}

async function readSecrets(file: string): Promise<readonly Uint8Array[]> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (cause) {
    throw new TensorBusError("TB_FILE", `the secret file ${file} cannot be read`, {
      details: { file },
      cause,
    });
  }
  return checkSecrets(linesOf(text), file);
}

function linesOf(text: string): Buffer[] {
  return text
    .split(/\r?\n/)
    .filter((line) => line !== "")
    .map((line) => Buffer.from(line));
}

/** Errors name where a secret came from, never the secret. */
function checkSecrets(secrets: readonly Uint8Array[], from: string): readonly Uint8Array[] {
  if (secrets.length === 1 || secrets.length === 2) {
    const short = secrets.find((secret) => secret.length < leastSecretBytes);
    if (short === undefined) return secrets;
    throw new TensorBusError(
      "TB_AUTH",
      `a secret in ${from} has ${short.length} bytes, and needs at least ${leastSecretBytes}`,
    );
  }
  throw new TensorBusError("TB_AUTH", `${from} has ${secrets.length} secrets: give one or two`);
}
