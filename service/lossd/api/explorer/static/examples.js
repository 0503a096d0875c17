/** What there is to try before a reader has brought anything: inputs for each loss, and a loss for given inputs. */

import { axesOf, givenOf } from "./axes.js";
import { defaultsOf } from "./curve.js";

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

/** Scores of a disc that is seen too far to the left, and blurred. */
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

/** `{ inputs: texts by name, parameters }` that a loss accepts, or null where it is not known what it takes. */
export function exampleOf(loss) {
  const domain = Object.fromEntries(loss.inputs.map((input) => [input.name, input.types[0].domain]));
  const wanted = (texts) => Object.fromEntries(Object.entries(texts).filter(([name]) => name in domain));
  const known = domain.prediction && EXAMPLES[loss.task]?.(domain);
  if (known) return { inputs: wanted(known), parameters: {} };
  const [axis] = axesOf(loss);
  if (!axis) return null;
  const middle = axis.low + 0.6 * (axis.high - axis.low);
  const xs =
    loss.batching === "rows"
      ? [0.1, 0.3, 0.5, 0.7, 0.9].map((part) => axis.low + part * (axis.high - axis.low))
      : [middle];
  const scene = axis.scene(xs, { ...defaultsOf(loss), ...axis.start }, givenOf(axis));
  const brief = (value) => (Array.isArray(value) ? value.map(brief) : Number(value.toPrecision(3)));
  // As rows only what is read back from rows in the same shape.
  const asRows = (value) =>
    Array.isArray(value) &&
    (!Array.isArray(value[0]) || (value.length > 1 && value[0].length > 1 && !Array.isArray(value[0][0])));
  const text = (value) => (asRows(value) ? rows(brief(value)) : JSON.stringify(brief(value)));
  return {
    inputs: Object.fromEntries(Object.entries(scene.inputs).map(([name, value]) => [name, text(value)])),
    parameters: { ...axis.start, ...scene.parameters },
  };
}

/** The loss that fits two arrays best, going by their shapes and by what is in the target. */
export function guess(prediction, target) {
  if (!prediction || !target) return "cross_entropy";
  const [p, t] = [prediction.shape, target.shape];
  const values = Array.from(target.data.subarray?.(0, 10_000) ?? target.data.slice(0, 10_000), Number);
  const half = target.dtype === "F16" || target.dtype === "BF16"; // whose bits are not their values
  const whole = !half && values.every(Number.isInteger);
  const among = (...allowed) => !half && values.every((value) => allowed.includes(value));
  if (whole && p.length === t.length + 1 && p.length > 1) return p.length > 2 ? "dice" : "cross_entropy";
  if (String(p) !== String(t)) return "cross_entropy";
  if (p.length === 2 && p[1] === 4 && !among(0, 1)) return "giou";
  if (among(0, 1)) return p.length === 2 && p[1] > 1 ? "multilabel_soft_margin" : "bce_with_logits";
  return among(-1, 1) ? "soft_margin" : "mse";
}
