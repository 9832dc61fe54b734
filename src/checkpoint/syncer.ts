/** Makes what was written durable, without keeping the thread that asks for it. */
import { fdatasync } from "node:fs";
import { promisify } from "node:util";
import { fileError } from "../model/files.ts";
import type { OpenedFile } from "./opened-file.ts";

const datasync = promisify(fdatasync);

export class Syncer {
  readonly #files: readonly OpenedFile[];
  readonly #written = new Set<number>();

  constructor(files: readonly OpenedFile[]) {
    this.#files = files;
  }

  /** Something was written to the file of that number. */
  wrote(file: number): void {
    this.#written.add(file);
  }

  /** Settles once everything is durable that was written before the call. */
  async sync(): Promise<void> {
    const files = [...this.#written].map((number) => this.#files[number]!);
    this.#written.clear();
    await Promise.all(
      files.map(({ fd, path }) =>
        datasync(fd).catch((error: unknown) => {
          throw fileError(error, "write", path);
        }),
      ),
    );
  }
}
