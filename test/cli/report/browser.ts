import { existsSync } from "node:fs";
import { type Browser, type BrowserContextOptions, chromium, type Page } from "playwright-core";

const executable = process.env["CHROMIUM"] ?? "/usr/bin/chromium";

/** Why pages cannot be tried here; `undefined` if they can. */
export const chromiumMissing = existsSync(executable)
  ? undefined
  : `needs a Chromium: ${executable} is not there, and CHROMIUM names no other`;

const flags = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-first-run",
];

/** Nothing takes this long unless it hangs. */
export const hangs = 60_000;

/** A headless Chromium with a fresh profile of its own. */
export function launchBrowser(): Promise<Browser> {
  return chromium.launch({ executablePath: executable, args: flags });
}

/** A page that was opened, and what went wrong on it or was asked of anybody. */
interface OpenPage {
  readonly page: Page;
  readonly problems: string[];
  readonly requests: string[];
}

export async function openPage(
  browser: Browser,
  file: string,
  options: BrowserContextOptions = {},
): Promise<OpenPage> {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(hangs);
  const problems: string[] = [];
  const requests: string[] = [];
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") problems.push(message.text());
  });
  page.on("pageerror", (error) => problems.push(error.message));
  // Memory of the page itself is no request: the worker is made from it.
  page.on("request", (request) => {
    if (!request.url().startsWith("blob:")) requests.push(request.url());
  });
  await page.goto(`file://${file}`);
  await page.locator("#digest").waitFor();
  return { page, problems, requests };
}
