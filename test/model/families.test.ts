import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { modelTensors, modelTypes } from "../../src/model/config.ts";
import { type FamilyQuestion, familyQuestions } from "./kit/family-configs.ts";

/**
 * Every table of a family against transformers, form by form and head by head: lists that transformers 5.18 wrote are
 * recorded, and asked for anew where it is installed (TENSORBUS_PYTHON, or python3; TENSORBUS_RECORD=1 records them).
 */
const forms = ["checkpoint", "state_dict"] as const;
type Answer = Readonly<Record<(typeof forms)[number], Readonly<Record<string, readonly [string, number[]]>>>>;
/** Shapes by name; `state_dict` only if it differs. */
type ListFile = Readonly<Record<string, Partial<Readonly<Record<string, Readonly<Record<string, string>>>>>>>;

const recordPath = join(import.meta.dirname, "../golden/model-lists.json");
const pythonPath = process.env.TENSORBUS_PYTHON ?? "python3";
const recorded = (): ListFile => JSON.parse(readFileSync(recordPath, "utf8")) as ListFile;

function missingReason(): string | undefined {
  try {
    execFileSync(pythonPath, ["-c", "import torch, transformers, safetensors"], {
      stdio: "pipe",
      timeout: 120_000,
    });
    const version = execFileSync(pythonPath, ["-c", "import transformers; print(transformers.__version__)"]);
    return Number(String(version).split(".")[0]) >= 5 ? undefined : "transformers is older than 5";
  } catch {
    return `${pythonPath} with torch, transformers and safetensors is not installed (TENSORBUS_PYTHON names another)`;
  }
}

function listed(question: FamilyQuestion, form: (typeof forms)[number]): Record<string, string> {
  const config = { ...question.config, architectures: [question.architecture], torch_dtype: "bfloat16" };
  const tensors = modelTensors(JSON.stringify(config), { form });
  return Object.fromEntries(tensors.map(({ name, shape }) => [name, shape.join("x")]));
}

describe("tables of families", () => {
  test("have recorded lists, every family and head", () => {
    const lists = recorded();
    for (const question of familyQuestions) {
      for (const form of forms) {
        const list = lists[question.name]?.[form] ?? lists[question.name]?.checkpoint;
        expect(listed(question, form), `${question.name}, ${form}`).toEqual(list);
      }
    }
    const asked = new Set(familyQuestions.map(({ config }) => config.model_type));
    // Kimi-K2 is DeepSeek-V3 under another name, which transformers does not know.
    expect([...asked, "kimi_k2"].sort()).toEqual([...modelTypes].sort());
  });

  const reason = missingReason();
  if (reason !== undefined) console.warn(`transformers is not asked: ${reason}`);
  test.skipIf(reason !== undefined)(
    `agree with what transformers saves${reason === undefined ? "" : ` (skipped: ${reason})`}`,
    () => {
      const input = familyQuestions.map(({ config, architecture }) =>
        JSON.stringify({ config, architecture }),
      );
      const script = join(import.meta.dirname, "../oracle/model_lists.py");
      const output = execFileSync(pythonPath, [script], {
        input: `${input.join("\n")}\n`,
        encoding: "utf8",
        maxBuffer: 2 ** 28,
        stdio: ["pipe", "pipe", "ignore"],
        timeout: 300_000,
      });
      const answers = output
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line) as Answer);
      if (process.env.TENSORBUS_RECORD !== undefined) record(answers);
      familyQuestions.forEach((question, index) => {
        for (const form of forms) {
          const theirs = Object.entries(answers[index]![form]).map(([name, [, shape]]) => [
            name,
            shape.join("x"),
          ]);
          expect(listed(question, form), `${question.name}, ${form}`).toEqual(Object.fromEntries(theirs));
        }
      });
    },
    300_000,
  );
});

function record(answers: readonly Answer[]): void {
  const lists = familyQuestions.map(({ name }, index) => {
    const [checkpoint, memory] = forms.map((form) =>
      Object.fromEntries(
        Object.entries(answers[index]![form])
          .map(([tensor, [, shape]]) => [tensor, shape.join("x")] as const)
          .sort(([a], [b]) => (a < b ? -1 : 1)),
      ),
    );
    const same = JSON.stringify(checkpoint) === JSON.stringify(memory);
    return `${JSON.stringify(name)}: ${JSON.stringify({ checkpoint, ...(same ? {} : { state_dict: memory }) })}`;
  });
  writeFileSync(recordPath, `{\n${lists.join(",\n")}\n}\n`);
}
