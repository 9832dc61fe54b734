import type { ComponentChildren } from "preact";

/** What is wrong with which field. */
export interface FieldProblem {
  readonly field: string;
  readonly message: string;
}

interface FieldProps {
  /** Its name among the fields of the form. */
  readonly id: string;
  readonly label: string;
  readonly value: string;
  readonly problem: FieldProblem | undefined;
  readonly placeholder?: string;
  readonly wide?: boolean;
  /** A choice of these rather than text; an empty one is named by the placeholder. */
  readonly options?: readonly string[];
  onChange(value: string): void;
}

/** A labelled field, with what is wrong with it below. */
export function Field(props: FieldProps) {
  const { id, label, value, placeholder = "", wide = false, options, onChange } = props;
  const problem = props.problem?.field === id ? props.problem.message : undefined;
  const input = {
    id: `field-${id}`,
    value,
    "aria-invalid": problem !== undefined,
    "aria-describedby": problem === undefined ? undefined : `problem-${id}`,
  };
  return (
    <div class={wide ? "field wide" : "field"}>
      <label for={input.id}>{label}</label>
      {options === undefined ? (
        <input
          {...input}
          type="text"
          class="code"
          placeholder={placeholder}
          spellcheck={false}
          autocomplete="off"
          onInput={(event) => onChange(event.currentTarget.value)}
        />
      ) : (
        <select {...input} onChange={(event) => onChange(event.currentTarget.value)}>
          {options.map((option) => (
            <option key={option} value={option}>
              {option === "" ? placeholder : option}
            </option>
          ))}
        </select>
      )}
      {problem !== undefined && (
        <p class="problem" id={`problem-${id}`} role="alert">
          {problem}
        </p>
      )}
    </div>
  );
}

export function Group({
  title,
  children,
}: {
  readonly title: ComponentChildren;
  readonly children: ComponentChildren;
}) {
  return (
    <fieldset class="group">
      <legend>{title}</legend>
      <div class="fields">{children}</div>
    </fieldset>
  );
}
