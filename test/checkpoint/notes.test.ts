/** The journal must never say of an item that it is on disk when it may have been lost. */
import { expect, it } from "vitest";
import { Journal } from "../../src/checkpoint/journal.ts";
import { Notes } from "../../src/checkpoint/notes.ts";
import { Syncer } from "../../src/checkpoint/syncer.ts";
import { testFolder } from "./kit/folders.ts";

const folder = testFolder();
/** More than is written before a sync begins. */
const manyBytes = 2 ** 30;

/** Fails once, when it is told to, as `fdatasync` of Linux does: it tells of a lost write once for each descriptor. */
class OnceFailing extends Syncer {
  #fail: (() => void) | undefined;
  calls = 0;

  fail(): void {
    this.#fail!();
  }

  override async sync(): Promise<void> {
    if (this.calls++ > 0) return;
    await new Promise<void>((_, reject) => {
      this.#fail = () => reject(new Error("EIO"));
    });
  }
}

it("notes nothing that was written beside a sync that failed, though the next one succeeds", async () => {
  const syncer = new OnceFailing([]);
  const journal = Journal.open(folder(), "key", 2);
  const notes = new Notes(syncer, journal);
  try {
    notes.add(0, [1], manyBytes);
    await Promise.resolve();
    expect(syncer.calls).toBe(1);
    notes.add(1, [2], 1);
    notes.begin();
    syncer.fail();
    await expect(notes.settled()).rejects.toThrow("EIO");
  } finally {
    journal.close();
  }
  const again = Journal.open(folder(), "key", 2);
  again.close();
  expect([...again.done.keys()]).toEqual([]);
});
