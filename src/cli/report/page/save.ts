/** Hands a file to the reader, from memory. */
export function save(name: string, contents: string | Uint8Array): void {
  const blob = new Blob([contents as BlobPart], { type: "application/octet-stream" });
  const url = URL.createObjectURL(blob);
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  // Only once the browser has taken it.
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
