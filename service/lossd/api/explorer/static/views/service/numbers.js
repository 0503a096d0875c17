/** Numbers in words, and sums of a histogram's buckets. */

export const count = (counted) => counted.reduce((sum, bucket) => sum + bucket.count, 0);
export const whole = (value) => Math.round(value).toLocaleString("en");
export const compact = (value) =>
  value >= 100 ? whole(value) : Number(value.toFixed(value >= 10 ? 1 : 2)).toLocaleString("en");

export function between(above, upTo) {
  if (!Number.isFinite(upTo)) return `over ${above}`;
  return upTo - above > 1 ? `${above + 1}–${upTo}` : String(upTo);
}

export function seconds(value) {
  if (value >= 1) return `${Number(value.toPrecision(3))} s`;
  if (value >= 1e-3) return `${Number((1e3 * value).toPrecision(3))} ms`;
  return `${Math.round(1e6 * value)} µs`;
}

export function bytes(value) {
  const step = value > 0 ? Math.min(3, Math.floor(Math.log2(value) / 10)) : 0;
  return `${Number((value / 1024 ** step).toPrecision(3))} ${["B", "KiB", "MiB", "GiB"][step]}`;
}

export function ago(s) {
  if (s < 120) return `${Math.round(s)} seconds`;
  if (s < 7200) return `${Math.round(s / 60)} minutes`;
  return s < 172800 ? `${Math.round(s / 3600)} hours` : `${Math.round(s / 86400)} days`;
}
