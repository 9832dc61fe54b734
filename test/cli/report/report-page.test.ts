import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Browser, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from "vitest";
import { loadSpec } from "../../../src/model/spec.ts";
import { Plan, planTransfer } from "../../../src/plan/index.ts";
import { runCli } from "../kit/command-line.ts";
import { chromiumMissing, hangs, launchBrowser, openPage } from "./browser.ts";

vi.setConfig({ testTimeout: 2 * hangs, hookTimeout: hangs });

const folder = mkdtempSync(join(tmpdir(), "tensorbus-report-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** Names as a hostile checkpoint could have them. */
const evil = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">';
const spec = {
  version: 1,
  model: {
    tensors: [
      { name: `a.up ${evil}`, shape: [96, 64], dtype: "float32" },
      { name: "b.up", shape: [96, 64], dtype: "float32" },
      { name: "c.norm", shape: [50], dtype: "float32" },
    ],
  },
  source: { name: `trainer ${evil}`, mesh: [4], ranks: "0..3" },
  target: { name: "engine", mesh: [2, 2], ranks: [4, 5, 6, 7], dimNames: [evil, "tp"] },
  placements: [
    { match: "\\.up", source: ["S(0)"], target: ["R", "S(1)"] },
    { match: "norm", source: ["S(0)"], target: ["R", "R"] },
  ],
  strategy: "direct",
  topology: { ranksPerHost: 4, hostMBps: 1000, networkMBps: 100, latencyUs: 5 },
  budget: { rankEgressBytes: "1KiB", stagingBytes: "1GiB" },
};

async function writePage(
  name: string,
  values: object,
): Promise<{ spec: string; page: string; code: number }> {
  const path = join(folder, `${name}.json`);
  const page = join(folder, `${name}.html`);
  writeFileSync(path, JSON.stringify(values));
  const { code, stderr } = await runCli("plan", path, "--html", page);
  expect(stderr).toContain(`wrote ${page}, `);
  return { spec: path, page, code };
}

test("the same plan makes the same page, without the names in plain", async () => {
  const [first, second] = [await writePage("same", spec), await writePage("same", spec)];
  expect(first.code).toBe(1); // a budget is exceeded, and the page is there
  const text = readFileSync(first.page, "utf8");
  expect(readFileSync(second.page, "utf8")).toBe(text);
  expect(text).not.toContain("hacked");
  expect(text).toMatch(/Content-Security-Policy" content="default-src 'none'; script-src 'sha256-/);
  expect(text).not.toMatch(/(?:src|href)="(?!#)/);
});

describe.skipIf(chromiumMissing !== undefined)(
  `the page in Chromium${chromiumMissing ? ` (${chromiumMissing})` : ""}`,
  () => {
    let browser: Browser;
    beforeAll(async () => {
      browser = await launchBrowser();
    });
    afterAll(() => browser?.close());
    // A page that stays open goes on holding its plan.
    afterEach(() => Promise.all(browser.contexts().map((context) => context.close())));

    test("opens without errors or requests, and takes names for text", async () => {
      const turned = { ...spec, target: { ...spec.target, name: "eng\u202eeni\u202c" } };
      const { page: file } = await writePage("evil", turned);
      const { page, problems, requests } = await openPage(browser, file);
      expect(requests).toEqual([`file://${file}`]);
      expect(await page.locator("header").innerText()).toContain(`trainer ${evil}`);
      // What would turn the line around is seen instead.
      expect(await page.locator("header").innerText()).toContain("eng\\u202eeni\\u202c");
      expect(await page.evaluate("window.hacked")).toBeUndefined();
      expect(await page.locator("img").count()).toBe(0);
      expect(await page.locator(".exceeded").innerText()).toContain("rankEgressBytes");
      expect(await page.locator(".kept").innerText()).toContain("stagingBytes");
      // What the policy is for: a request that a page of ours would never make.
      const asked = await page.evaluate(
        "fetch('https://example.com/').then(() => 'answered', () => 'refused')",
      );
      expect(asked).toBe("refused");
      expect(problems.filter((problem) => !problem.includes("Content Security Policy"))).toEqual([]);
      expect(problems.length).toBeGreaterThan(0);
    });

    test("shows the digest, and every cell of the heat map adds up to the statistics", async () => {
      const { page: file, spec: path } = await writePage("cells", spec);
      const plan = await planTransfer((await loadSpec(path)).input);
      const { page, problems } = await openPage(browser, file);
      expect(await page.locator("#digest").innerText()).toBe(plan.digest);
      const map = page.getByRole("application", { name: /Heat map/ });
      await map.focus();
      expect(await page.locator("#heat-map").getAttribute("data-cells")).toBe("4 x 4");
      const cells: number[][] = [];
      for (let row = 0; row < 4; row++) {
        for (let column = 0; column < 4; column++) {
          await page.keyboard.press(column === 0 ? (row === 0 ? "ArrowLeft" : "ArrowDown") : "ArrowRight");
          const bytes = Number(await page.locator("#heat-bytes").getAttribute("data-bytes"));
          cells[row] = [...(cells[row] ?? []), bytes];
        }
        for (let column = 0; column < 3; column++) await page.keyboard.press("ArrowLeft");
      }
      const { ranks } = plan.stats();
      const total = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);
      expect(cells.map(total)).toEqual(ranks.slice(0, 4).map(({ sent }) => Number(sent)));
      const columns = [0, 1, 2, 3].map((column) => total(cells.map((row) => row[column]!)));
      expect(columns).toEqual(ranks.slice(4).map(({ received }) => Number(received)));
      expect(problems).toEqual([]);
    });

    test("plans again with the digest of the command line, and of the plan that it saves", async () => {
      const { page: file } = await writePage("again", spec);
      const { page, problems, requests } = await openPage(browser, file);
      const before = await page.locator("#digest").innerText();
      await fill(page, "strategy", "striped");
      await fill(page, "source.mesh", "2, 2");
      await fill(page, "0.source.placements", "R, S(0)");
      await fill(page, "1.source.placements", "SS(0,2), S(0)");
      await fill(page, "source.stridedShard", "split");
      await page.getByLabel("and prove it").check();
      await page.getByRole("button", { name: "Plan", exact: true }).click();
      await page.getByText("planned in this page").waitFor();
      const digest = await page.locator("#digest").innerText();
      expect(digest).not.toBe(before);

      const saved = await download(page, "Save the spec", "edited.json");
      const { digest: planned, verified } = await planJson(saved);
      expect([planned, verified]).toEqual([digest, false]);
      const bytes = readFileSync(await download(page, "Save the plan", "edited.tbplan"));
      expect(Plan.load(bytes).digest).toBe(digest);

      await page.getByRole("button", { name: "Back to the page's own" }).click();
      expect(await page.locator("#digest").innerText()).toBe(before);
      expect([problems, requests]).toEqual([[], [`file://${file}`]]);
    });

    test("says at the field what is wrong with it", async () => {
      const { page: file } = await writePage("wrong", spec);
      const { page } = await openPage(browser, file);
      const wrong = async (field: string, value: string): Promise<string> => {
        const before = await page.locator(`[id="field-${field}"]`).inputValue();
        await fill(page, field, value);
        await page.getByRole("button", { name: "Plan", exact: true }).click();
        const text = await page.locator(`[id="problem-${field}"]`).innerText();
        expect(await page.locator(`[id="field-${field}"]`).getAttribute("aria-invalid")).toBe("true");
        await fill(page, field, before);
        return text;
      };
      expect(await wrong("source.mesh", "4, x")).toContain("must be a number");
      expect(await wrong("source.ranks", "0..4")).toContain("ranks");
      expect(await wrong("target.ranks", "0..3")).toContain("both sides");
      expect(await wrong("0.match", "(")).toContain("regular expression");
      expect(await wrong("1.match", "nothing")).toContain("match no rule");
      expect(await wrong("0.target.placements", "S(0)")).toContain("1 placements");
      expect(await wrong("0.target.placements", "R, S(7)")).toContain("cuts a dimension that no tensor");
      expect(await wrong("0.target.placements", "R, P(sum)")).toContain("cannot be Partial");
      expect(await wrong("bucketBytes", "8 potatoes")).toContain("size");
      expect(await wrong("topology.latencyUs", "")).toContain("missing");
      expect(await page.locator("#plan-status").innerText()).toContain("TB_SPEC");
    });

    test("stays usable with 1024 ranks and 512: by host, then rank by rank", async () => {
      const { page: file } = await writePage("large", {
        ...spec,
        model: { tensors: [{ name: "w", shape: [8192, 8192], dtype: "bfloat16" }] },
        source: { mesh: [1024] },
        target: { mesh: [512] },
        placements: [{ match: "w", source: ["S(0)"], target: ["S(1)"] }],
        topology: { ...spec.topology, ranksPerHost: 8 },
      });
      const { page, problems } = await openPage(browser, file);
      const map = page.locator("#heat-map");
      expect(await map.getAttribute("data-cells")).toBe("128 x 64");
      await map.locator(".plot").click({ position: { x: 300, y: 100 } });
      expect(await map.getAttribute("data-cells")).toBe("8 x 8");
      expect(await page.locator("#heat-details").innerText()).toMatch(
        /^rank \d+ to rank \d+: .* in 1 channel$/,
      );
      await page.getByRole("button", { name: "Zoom out" }).click();
      expect(await map.getAttribute("data-cells")).toBe("128 x 64");

      const box = (await map.locator(".plot").boundingBox())!;
      await page.mouse.move(box.x + 200, box.y + 40);
      await page.mouse.down();
      await page.mouse.move(box.x + 420, box.y + 120, { steps: 4 });
      await page.mouse.up();
      const [rows, columns] = (await map.getAttribute("data-cells"))!.split(" x ").map(Number);
      expect(rows).toBeLessThan(170);
      expect(columns).toBeGreaterThan(64);
      await page.keyboard.press("Escape");

      const bars = page.locator("#rank-bars");
      expect(await bars.getAttribute("data-cells")).toBe("192");
      await page.getByRole("application", { name: /Bytes sent/ }).focus();
      await page.keyboard.press("Enter");
      expect(await bars.getAttribute("data-cells")).toBe("8");

      const timeline = page.locator("#timeline-plot");
      expect(Number(await timeline.getAttribute("data-rows"))).toBe(128);
      await timeline.locator(".plot").click({ position: { x: 300, y: 20 } });
      expect(Number(await timeline.getAttribute("data-rows"))).toBe(8);
      expect(Number(await timeline.getAttribute("data-bars"))).toBe(8 * 512);

      // The planner works elsewhere: the page is still there for its reader, who may stop it.
      const plan = page.getByRole("button", { name: "Plan", exact: true });
      await plan.dispatchEvent("click");
      await page.getByRole("application", { name: /Heat map/ }).focus();
      await page.keyboard.press("Enter");
      expect(await map.getAttribute("data-cells")).toBe("8 x 8");
      expect(await page.locator("#plan-status").innerText()).toBe("planning …");
      // Straight to the button: to scroll there could take longer than the plan.
      await page.getByRole("button", { name: "Stop" }).dispatchEvent("click");
      await plan.waitFor();
      expect(await page.locator("#plan-status").innerText()).toBe("stopped");
      expect(problems).toEqual([]);
    });

    test("opens where nothing goes from one rank to another", async () => {
      const side = { mesh: [2], ranks: "0..1" };
      const placements = [{ match: "w", source: ["S(0)"], target: ["S(0)"] }];
      const model = { tensors: [{ name: "w", shape: [8], dtype: "float32" }] };
      const values = { version: 1, model, source: side, target: side, colocated: true, placements };
      const { page: file } = await writePage("still", values);
      const { page, problems } = await openPage(browser, file);
      expect(await page.locator("#heat").innerText()).toContain("Nothing goes");
      expect(await page.locator("#timeline").innerText()).toContain("no topology");
      expect(await page.locator("#rank-bars").getAttribute("data-cells")).toBe("2");
      expect(problems).toEqual([]);
    });

    test("of a saved plan shows it, and says that there is no spec to change", async () => {
      const { spec: path } = await writePage("saved", spec);
      const [plan, file] = [join(folder, "saved.tbplan"), join(folder, "saved-plan.html")];
      await runCli("plan", path, "--save", plan);
      expect((await runCli("plan", plan, "--html", file)).code).toBe(0);
      const { page, problems } = await openPage(browser, file);
      expect(await page.locator("#digest").innerText()).toBe(Plan.load(readFileSync(plan)).digest);
      expect(await page.locator("#change").innerText()).toContain("made of a saved plan");
      expect(problems).toEqual([]);
    });

    test("names the target's parameters and what they are made of", async () => {
      const file = join(folder, "parameters.html");
      const config = join(import.meta.dirname, "../../model/configs/qwen3-30b-a3b.json");
      const topology = ["--topology", "ranksPerHost=8,hostMBps=450000,networkMBps=50000,latencyUs=5"];
      const sides = ["--source", "fsdp2:dp=8", "--target", "vllm:tp=4,dp=2,ep", ...topology];
      expect((await runCli("plan", "--model", config, ...sides, "--html", file)).code).toBe(0);
      const { page, problems } = await openPage(browser, file);
      await page.getByRole("link", { name: "Parameters" }).click();
      const rows = await page.locator("#parameters tbody tr").allInnerTexts();
      const said = rows.map((row) => row.split("\t"));
      const { stdout } = await runCli("plan", "--model", config, ...sides, "--json");
      const { parameters, proofs } = JSON.parse(stdout);
      expect(said).toHaveLength(parameters.length);
      expect(said).toContainEqual([
        "model.layers.{}.self_attn.qkv_proj.weight",
        "48",
        "self_attn.q_proj.weight + self_attn.k_proj.weight + self_attn.v_proj.weight",
        "144",
      ]);
      expect(said).toContainEqual([
        "model.layers.{}.mlp.experts.routed_experts.w13_weight",
        "48",
        "mlp.experts.{}.gate_proj.weight + mlp.experts.{}.up_proj.weight",
        "12,288",
      ]);
      expect(await page.locator("#parameters .hint").innerText()).toContain(
        `proved whole in ${proofs.target.pieces.toLocaleString("en")} pieces`,
      );
      const patterns = await page.locator("#patterns").innerText();
      expect(patterns).toContain("q_proj.weight, in model.layers.0.self_attn.qkv_proj.weight");
      // What nobody sees is shown by its number, and the page itself uses none.
      expect(await page.locator("main").innerText()).not.toMatch(/\\u[0-9a-f]{4}/);
      expect(await page.locator("#change").innerText()).toContain("presets or rules of parameters");
      // All columns of both tables are seen at once on half a screen too.
      await page.setViewportSize({ width: 760, height: 900 });
      const hidden =
        "[...document.querySelectorAll('.scroll')].map((one) => one.scrollWidth - one.clientWidth)";
      expect(await page.evaluate(hidden)).toEqual([0, 0]);
      expect(problems).toEqual([]);
    });

    test("is the same page on paper, in the dark, and on a narrow screen", async () => {
      const { page: file } = await writePage("views", spec);
      const { page, problems } = await openPage(browser, file, {
        colorScheme: "dark",
        viewport: { width: 360, height: 700 },
      });
      expect(await page.evaluate("document.documentElement.scrollWidth")).toBe(360);
      const background = () => page.evaluate("getComputedStyle(document.body).backgroundColor");
      const dark = await background();
      await page.emulateMedia({ media: "print" });
      expect(await background()).not.toBe(dark);
      expect(await page.locator("#change").isVisible()).toBe(false);
      expect(problems).toEqual([]);
    });
  },
);

async function fill(page: Page, field: string, value: string): Promise<void> {
  const element = page.locator(`[id="field-${field}"]`);
  // What is folded away is opened first, as a reader would.
  if (!(await element.isVisible())) await element.locator("xpath=ancestor::details/summary").click();
  if (await element.evaluate((node) => node.nodeName === "SELECT")) await element.selectOption(value);
  else await element.fill(value);
}

async function download(page: Page, button: string, name: string): Promise<string> {
  const path = join(folder, name);
  const [file] = await Promise.all([
    page.waitForEvent("download"),
    page.getByRole("button", { name: button }).click(),
  ]);
  await file.saveAs(path);
  return path;
}

async function planJson(path: string): Promise<{ digest: string; verified: boolean }> {
  const { stdout } = await runCli("plan", path, "--json");
  return JSON.parse(stdout);
}
