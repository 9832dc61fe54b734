import { mkdtempSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { makeFolders } from "../src/folders.ts";

const root = mkdtempSync(join(tmpdir(), "tensorbus-folders-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

test("a folder is made with those above it, and the first that was missing is named", () => {
  expect(makeFolders(join(root, "a/b/c"), 0o700)).toBe(join(root, "a"));
  expect(statSync(join(root, "a/b/c")).mode & 0o777).toBe(0o700);
  expect(makeFolders(join(root, "a/b/c"))).toBeUndefined();
  expect(makeFolders(join(root, "a/b/d"))).toBe(join(root, "a/b/d"));
});

test("what cannot be made is an error, also where the kernel makes nothing in a folder that exists", () => {
  writeFileSync(join(root, "file"), "");
  symlinkSync(join(root, "nowhere"), join(root, "link"));
  expect(() => makeFolders(join(root, "file"))).toThrow("EEXIST");
  expect(() => makeFolders(join(root, "link"))).toThrow("EEXIST");
  expect(() => makeFolders(join(root, "file/below"))).toThrow("ENOTDIR");
  // Node.js's recursive mkdir never comes back from this one.
  expect(() => makeFolders("/proc/tensorbus/below")).toThrow("ENOENT");
});
