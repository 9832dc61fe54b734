import { scaleLinear } from "d3-scale";

/** A linear scale of bytes from 0 on, whose ticks are round in KiB, MiB, GiB. */
export function byteScale(most: number, from: number, to: number, count: number) {
  const unit = 1024 ** Math.max(0, Math.floor(Math.log2(Math.max(most, 1)) / 10));
  const scale = scaleLinear()
    .domain([0, Math.max(most, 1) / unit])
    .range([from, to])
    .nice(count);
  return {
    ticks: scale.ticks(count).map((tick) => tick * unit),
    position: (bytes: number) => scale(bytes / unit),
  };
}

/** Bytes for a tick: no digits that mean nothing. */
export function formatTick(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return bytes === 0 ? "0" : `${Number(value.toPrecision(3))} ${units[unit]}`;
}
