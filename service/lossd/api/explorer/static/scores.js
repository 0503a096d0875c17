/** What the documents of runs say: names and values of metrics, their intervals, and addresses. */

import { figure } from "./plots.js";
import { taskName } from "./words.js";

const BESIDE = new Set(["task", "undefined"]);
const FIRST = ["f1.macro", "f1", "accuracy", "iou.macro", "auroc", "r2", "mean_iou", "loss"];

const USUAL = [
  "loss",
  "accuracy",
  "precision",
  "recall",
  "specificity",
  "f1",
  "iou",
  "mae",
  "mse",
  "rmse",
  "r2",
  "tp",
  "fp",
  "fn",
  "tn",
];

const isNumber = (value) => typeof value === "number" || value === null;

/**
 * The numbers of a result by name, without lists: `{ loss: 0.3, "f1.macro": 0.8 }`. Undefined ones are null. The usual
 * metrics come first.
 */
export function numbersOf({ loss, metrics = {} }) {
  const found = typeof loss === "number" ? { loss } : {};
  const add = (name, value) => {
    if (isNumber(value)) found[name] = value;
    else if (typeof value === "object" && !Array.isArray(value))
      for (const [key, entry] of Object.entries(value)) add(`${name}.${key}`, entry);
  };
  const rank = (name) => (USUAL.includes(name) ? USUAL.indexOf(name) : USUAL.length);
  const names = Object.keys(metrics).sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1));
  for (const name of names) if (!BESIDE.has(name)) add(name, metrics[name]);
  return found;
}

const COUNTS = new Set(["tp", "fp", "fn", "tn", "support", "empty_queries"]);

/** Whether a number is a count, which is neither good nor bad. */
export const isCount = (name) => COUNTS.has(baseOf(name));

/** A metric's name without the average or the class: f1 of f1.macro. */
export const baseOf = (name) => name.split(".")[0];

/** Which way is better, by the name of a number: "higher", "lower" or null. */
export function directions(metrics) {
  const better = Object.fromEntries(metrics.map((metric) => [metric.name.replaceAll("@", "_at_"), metric.better]));
  return (name) => {
    if (name === "loss") return "lower";
    const base = baseOf(name).replaceAll("@", "_at_");
    return better[base] ?? better[base.replace(/_at_\d+$/, "_at_k")] ?? null;
  };
}

/** The name that is shown first, of some names. */
export const firstOf = (names) => FIRST.find((name) => names.includes(name)) ?? names[0] ?? null;

/** The value of a name in a map of summaries or intervals, which may spell recall@1 as recall_at_1. */
export const named = (map, name) => map?.[name] ?? map?.[name.replaceAll("@", "_at_")];

/** A whole number with separators. */
export const whole = (value) => value.toLocaleString("en");

/** One or several things, in words: 1 row, 2 rows. */
export const counted = (count, what) =>
  `${whole(count)} ${what}${count === 1 ? "" : /(ch|s)$/.test(what) ? "es" : "s"}`;

/** The decimals of an interval's ends: its width determines them, as in the sentence of a comparison. */
function decimalsOf({ low, high }) {
  const width = high - low;
  const decimals = width > 0 && width < Infinity ? 1 - Math.floor(Math.log10(width)) : 3;
  return Math.min(12, Math.max(0, decimals));
}

/** The decimals of the narrowest of some intervals, for a column of them; null if there is none. */
export function finest(intervals) {
  const known = intervals.filter(({ low, high }) => Number.isFinite(low) && Number.isFinite(high));
  return known.length ? Math.max(...known.map(decimalsOf)) : null;
}

/**
 * Numbers of one interval as texts, with the interval's decimals or with `decimals`.
 *
 * @returns `text(value)`; with `sign`, positive numbers have one.
 */
export function digitsOf(low, high, { sign = false, decimals = null } = {}) {
  const text = (value) => value.toFixed(decimals ?? decimalsOf({ low, high })).replace("-", "−");
  return (value) => (sign && value >= 0 ? `+${text(value)}` : text(value));
}

/** A level in words: 95 %. */
export const percent = (level) => `${figure(100 * (level ?? 0.95))} %`;

/** The data set of a run, as name@version. */
export const datasetOf = ({ dataset }) =>
  dataset?.name ? `${dataset.name}${dataset.version ? `@${dataset.version}` : ""}` : null;

/** What a run measures: its loss or its task. */
export const subjectOf = ({ loss, task }) => (loss ? loss.name : taskName(task ?? ""));

/** A slice in words: site A, sex f. */
export const sliceName = (slice) =>
  Object.entries(slice)
    .map(([name, value]) => `${name} = ${value}`)
    .join(", ");

/** The path of a run's document, or of what is below it, such as `/plot.svg`. */
export function pathOf(name, owner, query = {}, below = "") {
  const text = new URLSearchParams({ ...(owner && { owner }), ...query }).toString();
  return `/v1/runs/${encodeURIComponent(name)}${below}${text && `?${text}`}`;
}

/** The path of a picture of a run, and the name of its file; `kind` is roc, pr, reliability, confusion or slices. */
export const pictureOf = (name, owner, kind, query = {}) => [
  pathOf(name, owner, { kind, ...query }, "/plot.svg"),
  `${name}-${kind}.svg`,
];

/** The view of a run. */
export const addressOf = ({ run, owner }) => [`/runs/${encodeURIComponent(run)}`, owner ? { owner } : undefined];

/** The query of a comparison; the first run is the baseline. The owner of a run is empty for the reader's own. */
export function comparisonQuery(runs, more = {}) {
  const owned = runs.some(({ owner }) => owner);
  return [
    ...runs.map(({ run }) => ["run", run]),
    ...(owned ? runs.map(({ owner }) => ["owner", owner ?? ""]) : []),
    ...Object.entries(more),
  ];
}

/** A time of a document, in the reader's own zone. */
export const timeText = (text) =>
  text === null || text === undefined
    ? "–"
    : new Date(text).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
