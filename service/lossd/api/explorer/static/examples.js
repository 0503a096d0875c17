/** Example inputs for each loss, and the loss that fits given inputs. */

import { byRows, requestsOf } from "./curve.js";

const rows = (values) => values.map((row) => (Array.isArray(row) ? row.join(", ") : row)).join("\n");

const SCORES = [
  [2.4, 0.3, -0.8],
  [1.1, 1.6, -0.2],
  [-0.6, 2.2, 0.4],
  [0.2, -1.3, 1.9],
  [1.5, 0.9, 0.1],
  [-0.4, 0.7, 1.2],
  [0.3, 1.9, 0.8],
  [2.1, -0.5, 0.6],
  [-1.2, 0.4, 2.6],
  [0.9, 1.0, 0.7],
  [-0.3, -0.1, 1.4],
  [1.8, 0.2, -0.4],
];
const CLASSES = [0, 0, 1, 2, 0, 2, 1, 0, 2, 2, 1, 0];
const SIDE = 12;

const rounded = (value) => Number(value.toFixed(3));
const sigmoid = (score) => rounded(1 / (1 + Math.exp(-score)));

function softmax(scores) {
  const powers = scores.map(Math.exp);
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => rounded(power / sum));
}

/** A disc as target, with blurred scores that are shifted to the left, or with the probabilities or classes of these. */
function disc(domain) {
  const cells = Array.from({ length: SIDE * SIDE }, (_, i) => [i % SIDE, Math.floor(i / SIDE)]);
  const score = ([x, y]) => Number((2 * (3.8 - Math.hypot(x - 4.6, y - 5.2))).toFixed(1));
  const grid = (flat) => Array.from({ length: SIDE }, (_, y) => flat.slice(y * SIDE, (y + 1) * SIDE));
  const shown = grid(cells.map((cell) => Math.max(-4, score(cell))));
  const aim = grid(cells.map(([x, y]) => Number(Math.hypot(x - 6.2, y - 5.4) < 3.6)));
  const lines = (image) => `[\n ${image.map((row) => JSON.stringify(row)).join(",\n ")}]`;
  const each = (form) => lines(shown.map((row) => row.map(form)));
  const prediction = {
    predicted: () => each((v) => Number(v > 0)),
    probability: () => `[${each((v) => sigmoid(-2 * v))},\n${each((v) => sigmoid(2 * v))}]`,
    logits: () => `[${each((v) => -v || 0)},\n${lines(shown)}]`,
  }[domain]();
  return { prediction: `[${prediction}]`, target: `[${lines(aim)}]` };
}

/** Scores of three classes as predictions of this domain. */
function ofDomain(domain, scores, probabilities) {
  if (domain === "predicted") return rows(scores.map((row) => row.indexOf(Math.max(...row))));
  return rows(domain === "probability" ? scores.map(probabilities) : scores);
}

const EXAMPLES = {
  multiclass: ({ prediction, target }) =>
    target === "class" && { prediction: ofDomain(prediction, SCORES, softmax), target: rows(CLASSES) },
  binary: ({ prediction, target }) => {
    const scores = [2.1, -0.7, 0.4, -1.9, 1.3, 0.2, -0.3, 3.0, -2.4, 0.8];
    const labels = [1, 0, 1, 0, 1, 0, 1, 1, 0, 1];
    if (prediction === "probability") return { prediction: rows(scores.map(sigmoid)), target: rows(labels) };
    return { prediction: rows(scores), target: rows(target === "sign" ? labels.map((y) => 2 * y - 1) : labels) };
  },
  multilabel: ({ prediction }) => ({
    prediction: ofDomain(prediction, SCORES.slice(0, 6), (row) => row.map(sigmoid)),
    target: rows([
      [1, 0, 0],
      [1, 1, 0],
      [0, 1, 1],
      [0, 0, 1],
      [1, 0, 1],
      [0, 1, 1],
    ]),
  }),
  sets: ({ prediction }) => ({
    prediction: ofDomain(prediction, SCORES.slice(0, 4), (row) => row.map(sigmoid)),
    target: rows([
      [0, -1, -1],
      [0, 1, -1],
      [1, 2, -1],
      [2, -1, -1],
    ]),
  }),
  regression: ({ target }) =>
    target === "finite" && {
      prediction: rows([2.5, 0, 2.1, 7.8, 4.4, -1.2, 3.3, 5.9]),
      target: rows([3, -0.5, 2, 7, 4.1, -1, 6.5, 5.2]),
      variance: rows([1, 0.5, 0.8, 1.2, 0.6, 0.4, 4, 0.9]),
    },
  segmentation: ({ prediction, target }) => target === "class" && disc(prediction),
  queries: () => ({
    prediction: rows([
      [0.2, 1.5, -0.3, 0.7],
      [2, 0.1, 0.4, -0.8],
      [-0.5, 0.3, 1.1, 0.9],
    ]),
    target: rows([
      [0, 2, 1, 3],
      [1, 0, 2, 0],
      [0, 0, 1, 0],
    ]),
  }),
  boxes: () => ({
    prediction: rows([
      [10, 10, 50, 40],
      [62, 20, 90, 66],
      [5, 60, 30, 92],
      [40, 45, 70, 70],
    ]),
    target: rows([
      [12, 12, 52, 44],
      [60, 18, 88, 60],
      [20, 70, 45, 98],
      [40, 45, 70, 70],
    ]),
  }),
};

/** Whether there are example inputs for a loss. */
export const hasExample = (loss) => Boolean(known(loss)) || loss.axes.length > 0;

/**
 * Example inputs for a loss or a task: `{ inputs: texts by name, parameters }`. Without an own example, points of the
 * loss's curve; of a task, those of a loss of this task with the same inputs.
 */
export async function exampleOf(subject, losses, context) {
  const inputs = known(subject);
  if (inputs) return { inputs, parameters: {} };
  if (subject.axes) return fromCurve(subject, context);
  const names = required(subject);
  const has = (loss) => names.every((name) => loss.inputs.some((input) => input.name === name));
  const found = await exampleOf(
    losses.find((loss) => loss.task === subject.name && has(loss)),
    losses,
    context,
  );
  return { inputs: Object.fromEntries(names.map((name) => [name, found.inputs[name]])), parameters: {} };
}

async function fromCurve(loss, context) {
  const few = await fewPoints({ loss, axis: loss.axes[0], parameters: {} }, context, 5);
  const { name: _, ...parameters } = few.loss;
  const texts = Object.entries(few.inputs).map(([name, value]) => [name, textOf(value)]);
  return { inputs: Object.fromEntries(texts), parameters };
}

/** A request of a few points of a curve, `{ loss, inputs }`; of one point if each is a request of its own. */
export async function fewPoints(curve, { api, signal }, points) {
  const { low, high } = curve.axis;
  const at = (part) => low + part * (high - low);
  const range = byRows(curve.loss) ? { low: at(0.1), high: at(0.9), points } : { low: at(0.6), high, points: 2 };
  const { first } = await requestsOf(curve, { api, signal, ...range });
  const { reduction: _, ...loss } = first.loss;
  const inputs = Object.entries(first.inputs).map(([name, value]) => [name, brief(value)]);
  return { loss, inputs: Object.fromEntries(inputs) };
}

const required = ({ inputs }) => inputs.filter((input) => !input.optional).map((input) => input.name);

function known(subject) {
  const domains = Object.fromEntries(subject.inputs.map((input) => [input.name, input.types[0].domain]));
  const texts = domains.prediction && EXAMPLES[subject.task]?.(domains);
  if (!texts || required(subject).some((name) => !(name in texts))) return false;
  return Object.fromEntries(Object.entries(texts).filter(([name]) => name in domains));
}

const TINY = 1e-9; // what rounding leaves of a 0
const brief = (value) =>
  Array.isArray(value) ? value.map(brief) : Math.abs(value) < TINY ? 0 : Number(value.toPrecision(3));

/** A tensor as text: rows of numbers if these are read back in the same shape, else JSON. */
export function textOf(value) {
  const isMatrix = (lists) => lists.length > 1 && lists[0].length > 1 && !Array.isArray(lists[0][0]);
  const asRows = Array.isArray(value) && (!Array.isArray(value[0]) || isMatrix(value));
  return asRows ? rows(value) : JSON.stringify(value);
}

/** The loss that fits two arrays best, by their shapes and the target's values. */
export function guess(prediction, target) {
  if (!prediction || !target) return "cross_entropy";
  const [p, t] = [prediction.shape, target.shape];
  const values = Array.from(target.data.subarray?.(0, 10_000) ?? target.data.slice(0, 10_000), Number);
  const whole = isPlain(target) && values.every(Number.isInteger);
  const among = (...allowed) => isPlain(target) && values.every((value) => allowed.includes(value));
  if (whole && p.length === t.length + 1 && p.length > 1) return p.length > 2 ? "dice" : "cross_entropy";
  if (String(p) !== String(t)) return "cross_entropy";
  if (p.length === 2 && p[1] === 4 && !among(0, 1)) return "giou";
  if (among(0, 1)) return p.length === 2 && p[1] > 1 ? "multilabel_soft_margin" : "bce_with_logits";
  return among(-1, 1) ? "soft_margin" : "mse";
}

/** The task of predicted classes, by their shapes and values; null if the predictions are not classes. */
export function guessTask(prediction, target) {
  const [reading] = readingsOf(prediction, target);
  if (reading !== "classes" || highestClass([prediction, target]) < 2) return null;
  return target.shape.length > 2 ? "segmentation" : "multiclass";
}

/** What predictions may be, the likeliest first: classes (integers in the shape of the target), probabilities, logits. */
export function readingsOf(prediction, target) {
  const isClass = (value) => value >= 0 && Number.isInteger(Number(value));
  const alike = String(prediction.shape) === String(target.shape);
  return [
    alike && [prediction, target].every((array) => isPlain(array) && array.data.every(isClass)) && "classes",
    isPlain(prediction) && prediction.data.every((value) => value >= 0 && value <= 1) && "probabilities",
    "logits",
  ].filter(Boolean);
}

/** The highest number of some arrays apart from the ignored one. */
export function highestClass(arrays, ignored) {
  let highest = 0;
  for (const { data } of arrays)
    for (const value of data) if (value > highest && Number(value) !== ignored) highest = Number(value);
  return highest;
}

const isPlain = ({ dtype }) => dtype !== "F16" && dtype !== "BF16"; // those are stored as bits, not as values
