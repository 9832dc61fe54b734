const byteUnits = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** `12.3 MiB`: three significant digits, whole bytes below 1 KiB. */
export function formatBytes(bytes: number | bigint): string {
  let value = Number(bytes);
  let unit = 0;
  // 1023.5 would round to 1024: the next unit says it better.
  while (value >= 1023.5 && unit < byteUnits.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : threeDigits(value)} ${byteUnits[unit]}`;
}

/** `1,234,567`. */
export function formatCount(count: number | bigint): string {
  // `toLocaleString` loads the tables of all languages, which takes as long as planning a small spec.
  return String(count).replaceAll(/\B(?=(\d{3})+$)/g, ",");
}

/** `1 wave`, `2,000 waves`. */
export function plural(count: number, noun: string): string {
  return `${formatCount(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** `850 us`, `12.3 ms`, `4.56 s`, `3 min 20 s`. */
export function formatDuration(seconds: number): string {
  if (seconds >= 100) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  if (seconds >= 1) return `${threeDigits(seconds)} s`;
  return seconds >= 1e-3 ? `${threeDigits(seconds * 1e3)} ms` : `${threeDigits(seconds * 1e6)} us`;
}

/** `0..31`, `0..2, 7`; an even step as `0..30 by 2`. At most a few parts, then `…`. */
export function formatRanks(ranks: Iterable<number>, maxParts = 4): string {
  const all = [...ranks];
  const parts: string[] = [];
  for (let start = 0; start < all.length; ) {
    const step = (all[start + 1] ?? Number.NaN) - all[start]!;
    let end = start + 1;
    while (end < all.length && step > 0 && all[end]! - all[end - 1]! === step) end++;
    // Two ranks that are not neighbours are no range.
    if (end - start === 2 && step !== 1) end = start + 1;
    const suffix = step === 1 || end - start === 1 ? "" : ` by ${step}`;
    parts.push(end - start === 1 ? `${all[start]}` : `${all[start]}..${all[end - 1]}${suffix}`);
    if (parts.length > maxParts) return `${parts.slice(0, maxParts).join(", ")}, …`;
    start = end;
  }
  return parts.join(", ");
}

function threeDigits(value: number): string {
  if (value >= 99.95) return value.toFixed(0);
  return value >= 9.995 ? value.toFixed(1) : value.toFixed(2);
}
