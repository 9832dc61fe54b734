import { Field, type FieldProblem } from "./fields.tsx";
import type { RuleForm, RuleSideForm } from "./spec-form.ts";

interface RulesProps {
  readonly rules: readonly RuleForm[];
  readonly problem: FieldProblem | undefined;
  onChange(rules: readonly RuleForm[]): void;
}

/** The rules of a spec, in their order: the first that is found in a tensor's name takes it. */
export function Rules({ rules, problem, onChange }: RulesProps) {
  const replace = (index: number, rule: RuleForm): void =>
    onChange(rules.map((old, at) => (at === index ? rule : old)));
  const move = (index: number, by: number): void => {
    const moved = [...rules];
    moved.splice(index + by, 0, ...moved.splice(index, 1));
    onChange(moved);
  };
  const add = (): void => {
    const last = rules.at(-1);
    const key = Math.max(-1, ...rules.map((rule) => rule.key)) + 1;
    onChange([...rules, { ...(last ?? emptyRule), key, match: "" }]);
  };
  return (
    <>
      <ol class="rules">
        {rules.map((rule, index) => (
          <li key={rule.key}>
            <fieldset class="group rule">
              <legend>Rule {index + 1}</legend>
              <Field
                id={`${rule.key}.match`}
                label="tensors whose name matches"
                value={rule.match}
                problem={problem}
                wide
                onChange={(match) => replace(index, { ...rule, match })}
              />
              {(["source", "target"] as const).map((side) => (
                <RuleSide
                  key={side}
                  id={`${rule.key}.${side}`}
                  name={side}
                  side={rule[side]}
                  problem={problem}
                  onChange={(changed) => replace(index, { ...rule, [side]: changed })}
                />
              ))}
              <div class="rule-buttons">
                <button type="button" disabled={index === 0} onClick={() => move(index, -1)}>
                  Up
                </button>
                <button type="button" disabled={index === rules.length - 1} onClick={() => move(index, 1)}>
                  Down
                </button>
                <button
                  type="button"
                  disabled={rules.length === 1}
                  onClick={() => onChange(rules.filter((_, at) => at !== index))}
                >
                  Remove
                </button>
              </div>
            </fieldset>
          </li>
        ))}
      </ol>
      <button type="button" onClick={add}>
        Add a rule
      </button>
    </>
  );
}

const emptySide: RuleSideForm = { placements: "", stridedShard: "", dim: "", index: "", of: "", sizes: "" };
const emptyRule = { source: emptySide, target: emptySide };

interface RuleSideProps {
  readonly id: string;
  readonly name: string;
  readonly side: RuleSideForm;
  readonly problem: FieldProblem | undefined;
  onChange(side: RuleSideForm): void;
}

function RuleSide({ id, name, side, problem, onChange }: RuleSideProps) {
  const field = (key: keyof RuleSideForm, label: string, placeholder = "") => (
    <Field
      id={`${id}.${key}`}
      label={label}
      value={side[key]}
      placeholder={placeholder}
      problem={problem}
      {...(key === "stridedShard" && { options: ["", "split", "order"] })}
      onChange={(value) => onChange({ ...side, [key]: value })}
    />
  );
  const isPlain = [side.dim, side.index, side.of, side.sizes, side.stridedShard].every((text) => text === "");
  return (
    <div class="rule-side">
      <div class="fields">{field("placements", `${name} placements`, "S(0), R")}</div>
      <details open={!isPlain}>
        <summary>one coordinate of the mesh, strided shards</summary>
        <div class="fields narrow">
          {field("dim", "mesh dimension", "all")}
          {field("index", "index", "$1")}
          {field("of", "of", "64")}
          {field("sizes", "sizes", "cut as by S")}
          {field("stridedShard", "strided shards", "as the side says")}
        </div>
      </details>
    </div>
  );
}
