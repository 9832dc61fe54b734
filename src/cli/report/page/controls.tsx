import { useId } from "preact/hooks";
import type { Zoom } from "./hooks.ts";

interface ChoiceProps {
  readonly label: string;
  readonly value: string;
  readonly options: readonly string[];
  onChange(value: string): void;
}

/** One of a few, all of them in sight. */
export function Choice({ label, value, options, onChange }: ChoiceProps) {
  const name = useId();
  return (
    <fieldset class="choice">
      <legend>{label}</legend>
      {options.map((option) => (
        <label key={option}>
          <input type="radio" name={name} checked={option === value} onChange={() => onChange(option)} />
          <span>{option}</span>
        </label>
      ))}
    </fieldset>
  );
}

export function ZoomOut({ zoom }: { readonly zoom: Zoom<unknown> }) {
  if (zoom.depth === 0) return null;
  return (
    <span class="zoom-out">
      <button type="button" onClick={zoom.out}>
        Zoom out
      </button>
      {zoom.depth > 1 && (
        <button type="button" onClick={zoom.reset}>
          Show all
        </button>
      )}
    </span>
  );
}
