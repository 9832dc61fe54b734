import { createHash } from "node:crypto";
import { deflateRawSync } from "node:zlib";
import { visible } from "../../visible.ts";
import { type Embedded, packEmbedded } from "./embed.ts";
import { pageNotices, pageScript, pageStyle, workerScript } from "./page-assets.ts";

/**
 * The page of a plan: one file, which asks nothing of any network, and is forbidden to. What comes from specs and
 * checkpoints stands in it compressed, as base64, and becomes text of the document, never markup; the same plan makes the
 * same file.
 */
export function renderPage(embedded: Embedded): string {
  const title = escapeText(`${embedded.report.summary.name}: tensorbus plan`);
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${title}</title>
<style>${pageStyle}</style>
</head>
<body>
<div id="app"><noscript>This report needs JavaScript.</noscript></div>
<script type="text/plain" id="report-data">${compressed(packEmbedded(embedded))}</script>
<script type="text/plain" id="report-worker">${compressed(Buffer.from(workerScript))}</script>
<script>${pageScript}</script>
<script type="text/plain" id="notices">
${pageNotices}
</script>
</body>
</html>
`;
}

/** The page's own script and style, WebAssembly, the worker that it makes, and nothing else. */
const policy = [
  "default-src 'none'",
  `script-src '${hashOf(pageScript)}' 'wasm-unsafe-eval'`,
  `style-src '${hashOf(pageStyle)}'`,
  "worker-src blob:",
  "base-uri 'none'",
  "form-action 'none'",
].join("; ");

function hashOf(text: string): string {
  return `sha256-${createHash("sha256").update(text).digest("base64")}`;
}

function compressed(bytes: Uint8Array): string {
  return deflateRawSync(bytes, { level: 9 }).toString("base64");
}

function escapeText(text: string): string {
  return visible(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
