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

/** A disc as target, with blurred scores that are shifted to the left. */
function disc() {
  const cells = Array.from({ length: SIDE * SIDE }, (_, i) => [i % SIDE, Math.floor(i / SIDE)]);
  const score = ([x, y]) => Number((2 * (3.8 - Math.hypot(x - 4.6, y - 5.2))).toFixed(1));
  const grid = (flat) => Array.from({ length: SIDE }, (_, y) => flat.slice(y * SIDE, (y + 1) * SIDE));
  const shown = grid(cells.map((cell) => Math.max(-4, score(cell))));
  const aim = grid(cells.map(([x, y]) => Number(Math.hypot(x - 6.2, y - 5.4) < 3.6)));
  const lines = (image) => `[\n ${image.map((row) => JSON.stringify(row)).join(",\n ")}]`;
  return {
    prediction: `[[${lines(shown.map((row) => row.map((v) => -v || 0)))},\n${lines(shown)}]]`,
    target: `[${lines(aim)}]`,
  };
}

const EXAMPLES = {
  multiclass: ({ target }) => target === "class" && { prediction: rows(SCORES), target: rows(CLASSES) },
  binary: ({ prediction, target }) => {
    const scores = [2.1, -0.7, 0.4, -1.9, 1.3, 0.2, -0.3, 3.0, -2.4, 0.8];
    const labels = [1, 0, 1, 0, 1, 0, 1, 1, 0, 1];
    if (prediction === "probability")
      return { prediction: rows(scores.map((z) => Number((1 / (1 + Math.exp(-z))).toFixed(3)))), target: rows(labels) };
    return { prediction: rows(scores), target: rows(target === "sign" ? labels.map((y) => 2 * y - 1) : labels) };
  },
  multilabel: () => ({
    prediction: rows(SCORES.slice(0, 6)),
    target: rows([
      [1, 0, 0],
      [1, 1, 0],
      [0, 1, 1],
      [0, 0, 1],
      [1, 0, 1],
      [0, 1, 1],
    ]),
  }),
  regression: ({ target }) =>
    target === "finite" && {
      prediction: rows([2.5, 0, 2.1, 7.8, 4.4, -1.2, 3.3, 5.9]),
      target: rows([3, -0.5, 2, 7, 4.1, -1, 6.5, 5.2]),
      variance: rows([1, 0.5, 0.8, 1.2, 0.6, 0.4, 4, 0.9]),
    },
  segmentation: ({ target }) => target === "class" && disc(),
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

/** Example inputs for a loss: `{ inputs: texts by name, parameters }`. Without an own example, points of its curve. */
export async function exampleOf(loss, context) {
  const inputs = known(loss);
  if (inputs) return { inputs, parameters: {} };
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

function known(loss) {
  const domains = Object.fromEntries(loss.inputs.map((input) => [input.name, input.types[0].domain]));
  const texts = domains.prediction && EXAMPLES[loss.task]?.(domains);
  if (!texts || loss.inputs.some((input) => !input.optional && !(input.name in texts))) return false;
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
  const half = target.dtype === "F16" || target.dtype === "BF16"; // stored as bits, not values
  const whole = !half && values.every(Number.isInteger);
  const among = (...allowed) => !half && values.every((value) => allowed.includes(value));
  if (whole && p.length === t.length + 1 && p.length > 1) return p.length > 2 ? "dice" : "cross_entropy";
  if (String(p) !== String(t)) return "cross_entropy";
  if (p.length === 2 && p[1] === 4 && !among(0, 1)) return "giou";
  if (among(0, 1)) return p.length === 2 && p[1] > 1 ? "multilabel_soft_margin" : "bce_with_logits";
  return among(-1, 1) ? "soft_margin" : "mse";
}
