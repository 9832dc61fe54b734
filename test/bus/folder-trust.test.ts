/** Where the bus puts its folders, others may have been before, and be at the same time. */
import {
  chmodSync,
  existsSync,
  lchownSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  realpathSync,
  rmSync,
  symlinkSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, describe, expect, it } from "vitest";
import { preparePrivateFolder } from "../../src/bus/process/folder.ts";

const base = realpathSync(mkdtempSync(join(tmpdir(), "tensorbus-folder-")));
let folder: string;
let count = 0;

beforeEach(() => {
  folder = join(base, String(count++));
  mkdirSync(folder, { mode: 0o755 });
});
afterAll(() => rmSync(base, { recursive: true, force: true }));

const foreign = expect.objectContaining({ name: "TensorBusError", code: "TB_FOREIGN" });
const stranger = 12_345;

describe("a private folder", () => {
  it("is made, with those above it, and stays what it is", () => {
    const path = join(folder, "a/b/c");
    expect(preparePrivateFolder(path)).toBe(path);
    expect(preparePrivateFolder(path)).toBe(path);
    mkdirSync(join(folder, "target"), { mode: 0o700 });
    symlinkSync(join(folder, "target"), join(folder, "link"));
    expect(preparePrivateFolder(join(folder, "link"))).toBe(join(folder, "target"));
  });

  it("is not where others may put another in its place", () => {
    const open = join(folder, "open");
    mkdirSync(open);
    chmodSync(open, 0o777);
    expect(() => preparePrivateFolder(join(open, "queue"))).toThrowError(foreign);
    // Nothing was made there.
    expect(readdirSync(open)).toEqual([]);
    chmodSync(open, 0o1777);
    expect(preparePrivateFolder(join(open, "queue"))).toBe(join(open, "queue"));
    chmodSync(open, 0o777);
    expect(() => preparePrivateFolder(join(open, "queue"))).toThrowError(foreign);
  });

  it("is not open to others itself", () => {
    const path = join(folder, "queue");
    mkdirSync(path, { mode: 0o755 });
    expect(() => preparePrivateFolder(path)).toThrowError(foreign);
  });

  describe.skipIf(process.geteuid!() !== 0)("beside other users (which needs root)", () => {
    it("follows none of their links, and makes nothing at its end", () => {
      const [own, link] = [join(folder, "own"), join(folder, "link")];
      mkdirSync(own, { mode: 0o700 });
      symlinkSync(own, link);
      lchownSync(link, stranger, stranger);
      expect(() => preparePrivateFolder(link)).toThrowError(foreign);
      expect(() => preparePrivateFolder(join(link, "queue"))).toThrowError(foreign);
      expect(existsSync(join(own, "queue"))).toBe(false);
    });

    it("lies in none of their folders", () => {
      const theirs = join(folder, "theirs");
      mkdirSync(theirs, { mode: 0o755 });
      lchownSync(theirs, stranger, stranger);
      expect(() => preparePrivateFolder(join(theirs, "queue"))).toThrowError(foreign);
      symlinkSync(join(theirs, "queue"), join(folder, "link"));
      expect(() => preparePrivateFolder(join(folder, "link"))).toThrow();
      expect(readdirSync(theirs)).toEqual([]);
    });

    it("does not change while somebody moves links about", () => {
      // Whoever could swap the folder for a link between two looks has to write where it lies; then it is refused.
      const shared = join(folder, "shared");
      mkdirSync(shared);
      chmodSync(shared, 0o1777);
      const path = preparePrivateFolder(join(shared, "queue"));
      lchownSync(path, stranger, stranger);
      expect(() => preparePrivateFolder(path)).toThrowError(foreign);
    });
  });
});
