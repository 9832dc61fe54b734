/** Small pieces are read through a window of each file: what a tensor's parts in many files share is read once. */
import { closeSync, openSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { Reader } from "../../src/checkpoint/windows.ts";
import { testFolder } from "./kit/folders.ts";

const folder = testFolder();

describe("pieces of several files in turns", () => {
  it("are read from the disk once, until what is known is forgotten", () => {
    const files = ["one", "two", "three"].map((name) => {
      const path = join(folder(), name);
      writeFileSync(path, Buffer.alloc(1000, name));
      return { path, fd: openSync(path, "r+") };
    });
    const reader = new Reader(files);
    const read = (file: number, position: number) => {
      const piece = Buffer.alloc(8);
      reader.read(file, piece, position);
      return piece.toString();
    };
    for (const [file, { fd }] of files.entries()) {
      read(file, 0);
      writeSync(fd, "another ", 8);
    }
    expect(files.map((_, file) => read(file, 8))).toEqual(["eoneoneo", "otwotwot", "eethreet"]);
    reader.forget();
    expect(files.map((_, file) => read(file, 8))).toEqual(["another ", "another ", "another "]);
    for (const { fd } of files) closeSync(fd);
  });
});
