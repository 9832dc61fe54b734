import { render } from "preact";
import { unpackEmbedded } from "../embed.ts";
import { App } from "./app.tsx";
import { readPayload } from "./payload.ts";

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
