/** The text of an element that holds compressed bytes as base64. */
export async function readPayload(id: string): Promise<Uint8Array<ArrayBuffer>> {
  const element = document.getElementById(id)!;
  const binary = atob(element.textContent!);
  const bytes = new Uint8Array(binary.length);
  for (let index = 0; index < binary.length; index++) bytes[index] = binary.charCodeAt(index);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
