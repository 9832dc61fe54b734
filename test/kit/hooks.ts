/** Run before each file, in processes of several files too. */
import { afterAll, afterEach } from "vitest";
import { endFile, endTest } from "./endings.ts";

afterEach(endTest);
afterAll(endFile);
