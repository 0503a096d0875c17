/** The Prometheus text format: samples with their labels. */

/** Samples by name: `[{ labels, value }]`. */
export function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found) continue;
    const [, name, written = "", value] = found;
    const labels = {};
    for (const [, key, quoted] of written.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[key] = quoted.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter));
    }
    if (!samples.has(name)) samples.set(name, []);
    samples.get(name).push({ labels, value: Number(value.replace("+Inf", "Infinity")) });
  }
  return samples;
}

/** The sum of a family's samples with these labels; 0 where there is none. */
export function total(samples, name, labels = {}) {
  let sum = 0;
  for (const sample of samples.get(name) ?? []) {
    if (Object.entries(labels).every(([key, value]) => sample.labels[key] === value)) sum += sample.value;
  }
  return sum;
}

/** A histogram's buckets `[{ upTo, count }]`; the counts are not cumulative. */
export function buckets(samples, name, labels = {}) {
  const found = (samples.get(`${name}_bucket`) ?? [])
    .filter((sample) => Object.entries(labels).every(([key, value]) => sample.labels[key] === value))
    .map((sample) => ({ upTo: Number(sample.labels.le.replace("+Inf", "Infinity")), count: sample.value }))
    .sort((a, b) => a.upTo - b.upTo);
  return found.map((bucket, i) => ({ upTo: bucket.upTo, count: bucket.count - (found[i - 1]?.count ?? 0) }));
}

/** The counts between two readings of the same buckets. */
export function since(earlier, later) {
  return later.map((bucket, i) => ({ upTo: bucket.upTo, count: Math.max(0, bucket.count - (earlier[i]?.count ?? 0)) }));
}

/** A quantile by linear interpolation within its bucket; null without counts. */
export function quantile(counted, share) {
  const all = counted.reduce((sum, { count }) => sum + count, 0);
  if (!all) return null;
  let below = 0;
  for (const [i, { upTo, count }] of counted.entries()) {
    if (below + count >= share * all && count) {
      const from = counted[i - 1]?.upTo ?? 0;
      return Number.isFinite(upTo) ? from + ((upTo - from) * (share * all - below)) / count : from;
    }
    below += count;
  }
  return null;
}
