import { type ComponentChildren, options, render, type VNode } from "preact";
import { visible } from "../../../visible.ts";
import { unpackEmbedded } from "../embed.ts";
import { App } from "./app.tsx";
import { readPayload } from "./payload.ts";

/** Names are other people's text: whatever is shown of them is seen, also what changes the order of a line. */
const before = options.vnode;
options.vnode = (node: VNode) => {
  const { props } = node;
  if (typeof node.type === "string" && props.children !== undefined) props.children = shown(props.children);
  before?.(node);
};

function shown(children: ComponentChildren): ComponentChildren {
  if (Array.isArray(children)) return children.map(shown);
  return typeof children === "string" ? visible(children) : children;
}

async function start(): Promise<void> {
  const embedded = unpackEmbedded(await readPayload("report-data"));
  const app = document.getElementById("app")!;
  app.replaceChildren();
  render(<App embedded={embedded} />, app);
}

start().catch((error: unknown) => {
  document.getElementById("app")!.textContent = `This report cannot be shown: ${String(error)}`;
  throw error;
});
