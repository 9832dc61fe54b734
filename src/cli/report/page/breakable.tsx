import type { ComponentChildren } from "preact";

/**
 * A name whose lines may end behind each dot: names are longer than columns. Children of an element, since what is not seen
 * is shown of those alone.
 */
export function breakable(name: string): ComponentChildren[] {
  return name.split(".").flatMap((part, index) => (index === 0 ? [part] : [".", <wbr key={index} />, part]));
}
