import type { RefObject } from "preact";
import { useCallback, useEffect, useLayoutEffect, useState } from "preact/hooks";

/** The width of an element, as it changes. */
export function useWidth(ref: RefObject<HTMLElement | null>): number {
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const element = ref.current!;
    const measure = () => setWidth(Math.floor(element.clientWidth));
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    return () => observer.disconnect();
  }, [ref]);
  return width;
}

/** Changes when colours do: with the scheme, and on paper. */
export function useScheme(): string {
  const queries = ["(prefers-color-scheme: dark)", "print"];
  const read = () => queries.map((query) => matchMedia(query).matches).join();
  const [scheme, setScheme] = useState(read);
  useEffect(() => {
    const changed = () => setScheme(read());
    const lists = queries.map((query) => matchMedia(query));
    for (const list of lists) list.addEventListener("change", changed);
    return () => {
      for (const list of lists) list.removeEventListener("change", changed);
    };
  }, []);
  return scheme;
}

/** Says where a view has been zoomed to, and the way back. */
export interface Zoom<W> {
  readonly window: W;
  readonly depth: number;
  into(window: W): void;
  out(): void;
  reset(): void;
}

export function useZoom<W>(whole: W): Zoom<W> {
  const [windows, setWindows] = useState<readonly W[]>([]);
  const out = useCallback(() => setWindows((all) => all.slice(0, -1)), []);
  const reset = useCallback(() => setWindows([]), []);
  const into = useCallback((window: W) => setWindows((all) => [...all, window]), []);
  return { window: windows.at(-1) ?? whole, depth: windows.length, into, out, reset };
}

/** A custom property of the page's style. */
export function styleOf(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
