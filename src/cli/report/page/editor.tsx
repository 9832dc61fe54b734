import { useEffect, useRef, useState } from "preact/hooks";
import type { Embedded, SpecValues } from "../embed.ts";
import type { Report } from "../report.ts";
import { Field, type FieldProblem, Group } from "./fields.tsx";
import type { PlanAnswer } from "./messages.ts";
import { planInWorker } from "./planner-client.ts";
import { Rules } from "./rule-fields.tsx";
import { save } from "./save.ts";
import {
  fieldOf,
  formOf,
  optionNames,
  type SideForm,
  type SpecForm,
  topologyNames,
  valuesOf,
} from "./spec-form.ts";

interface EditorProps {
  readonly embedded: Embedded;
  /** Takes the report of what was planned here; `undefined` for the page's own. */
  onReport(report: Report | undefined): void;
}

/** A spec to change, and the planner that plans it, in this page. */
export function Editor({ embedded, onReport }: EditorProps) {
  if (embedded.spec === undefined) {
    return (
      <p class="none">
        {embedded.report.summary.parameters === undefined
          ? "This page was made of a saved plan, without the spec that rules would stand in."
          : "A page plans by placements alone, and these sides have presets or rules of parameters: change them on the command line."}
      </p>
    );
  }
  return <SpecEditor embedded={embedded} spec={embedded.spec} onReport={onReport} />;
}

type Planned = Extract<PlanAnswer, { readonly report: Report }>;

function SpecEditor({ embedded, spec, onReport }: EditorProps & { readonly spec: SpecValues }) {
  const [form, setForm] = useState(() => formOf(spec));
  const [verify, setVerify] = useState(false);
  const [problem, setProblem] = useState<FieldProblem>();
  const [status, setStatus] = useState("");
  const [planned, setPlanned] = useState<Planned>();
  const [running, setRunning] = useState<AbortController>();
  useEffect(() => () => running?.abort(), [running]);
  useProblemFocus(problem);

  const plan = async (): Promise<void> => {
    const controller = new AbortController();
    setRunning(controller);
    setProblem(undefined);
    setStatus("planning …");
    const began = performance.now();
    try {
      const answer = await planInWorker(
        { file: embedded.report.summary.name, spec: valuesOf(form, spec), plan: embedded.plan, verify },
        controller.signal,
      );
      if ("failure" in answer) {
        const { code, message, path } = answer.failure;
        const field = fieldOf(path, form);
        if (field !== undefined) setProblem({ field, message });
        setStatus(`not planned: ${message}${code === undefined ? "" : ` (${code})`}`);
        return;
      }
      setPlanned(answer);
      onReport(answer.report);
      const seconds = ((performance.now() - began) / 1000).toFixed(1);
      setStatus(`planned in ${seconds} s, digest ${answer.report.summary.digest}`);
    } catch (error) {
      setStatus(controller.signal.aborted ? "stopped" : `not planned: ${String(error)}`);
    } finally {
      setRunning(undefined);
    }
  };
  const reset = (): void => {
    setForm(formOf(spec));
    setProblem(undefined);
    setPlanned(undefined);
    setStatus("");
    onReport(undefined);
  };
  const shared = { form, problem, onChange: setForm };
  return (
    <form
      class="editor"
      noValidate
      onSubmit={(event) => {
        event.preventDefault();
        if (running === undefined) void plan();
      }}
    >
      <div class="sides-form">
        <SideFields {...shared} name="source" />
        <SideFields {...shared} name="target" />
      </div>
      <label class="check">
        <input
          type="checkbox"
          checked={form.colocated}
          onChange={(event) => setForm({ ...form, colocated: event.currentTarget.checked })}
        />
        the same processes are on both sides
      </label>
      <h3>Placements</h3>
      <Rules rules={form.rules} problem={problem} onChange={(rules) => setForm({ ...form, rules })} />
      <h3>Options</h3>
      <OptionFields {...shared} />
      <div class="actions">
        {running === undefined ? (
          <button type="submit" class="primary">
            Plan
          </button>
        ) : (
          <button type="button" class="primary" onClick={() => running.abort()}>
            Stop
          </button>
        )}
        <label class="check">
          <input
            type="checkbox"
            checked={verify}
            onChange={(event) => setVerify(event.currentTarget.checked)}
          />
          and prove it
        </label>
        {planned !== undefined && (
          <>
            <button type="button" onClick={() => save("spec.json", JSON.stringify(planned.spec, null, 2))}>
              Save the spec
            </button>
            <button type="button" onClick={() => save("plan.tbplan", planned.plan)}>
              Save the plan
            </button>
          </>
        )}
        <button type="button" onClick={reset}>
          Back to the page's own
        </button>
        <output id="plan-status">{status}</output>
      </div>
    </form>
  );
}

/** Leads to the field that has to be changed. */
function useProblemFocus(problem: FieldProblem | undefined): void {
  const last = useRef<FieldProblem | undefined>(undefined);
  useEffect(() => {
    if (problem !== undefined && problem !== last.current)
      document.getElementById(`field-${problem.field}`)?.focus();
    last.current = problem;
  }, [problem]);
}

interface FormPartProps {
  readonly form: SpecForm;
  readonly problem: FieldProblem | undefined;
  onChange(form: SpecForm): void;
}

function SideFields({
  form,
  problem,
  onChange,
  name,
}: FormPartProps & { readonly name: "source" | "target" }) {
  const side = form[name];
  const change = (part: Partial<SideForm>): void => onChange({ ...form, [name]: { ...side, ...part } });
  return (
    <Group title={name}>
      <Field
        id={`${name}.mesh`}
        label="mesh"
        value={side.mesh}
        placeholder="8, 4"
        problem={problem}
        onChange={(mesh) => change({ mesh })}
      />
      <Field
        id={`${name}.ranks`}
        label="ranks"
        value={side.ranks}
        placeholder="counted on"
        problem={problem}
        onChange={(ranks) => change({ ranks })}
      />
      <Field
        id={`${name}.stridedShard`}
        label="strided shards"
        value={side.stridedShard}
        options={["", "split", "order"]}
        placeholder="not named"
        problem={problem}
        onChange={(stridedShard) => change({ stridedShard })}
      />
    </Group>
  );
}

function OptionFields({ form, problem, onChange }: FormPartProps) {
  return (
    <>
      <div class="fields">
        {optionNames.map((name) => (
          <Field
            key={name}
            id={name}
            label={optionLabels[name]}
            value={form.options[name]}
            problem={problem}
            {...(name === "strategy" && { options: ["", "auto", "direct", "striped"] })}
            placeholder={optionDefaults[name]}
            onChange={(value) => onChange({ ...form, options: { ...form.options, [name]: value } })}
          />
        ))}
      </div>
      <Group title="topology">
        {topologyNames.map((name) => (
          <Field
            key={name}
            id={`topology.${name}`}
            label={topologyLabels[name]}
            value={form.topology[name]}
            problem={problem}
            onChange={(value) => onChange({ ...form, topology: { ...form.topology, [name]: value } })}
          />
        ))}
      </Group>
    </>
  );
}

const optionLabels = {
  strategy: "strategy",
  bucketBytes: "bucket size",
  bucketsInFlight: "buckets in flight",
  peersInFlight: "peers in flight",
} as const;
const optionDefaults = {
  strategy: "auto, unless named",
  bucketBytes: "8MiB",
  bucketsInFlight: "2",
  peersInFlight: "4",
} as const;
const topologyLabels = {
  ranksPerHost: "ranks per host",
  hosts: "or the host of each rank",
  hostMBps: "within a host (MB/s)",
  networkMBps: "across hosts (MB/s)",
  latencyUs: "latency (µs)",
} as const;
