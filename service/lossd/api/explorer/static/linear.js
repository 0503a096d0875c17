/**
 * Models with two parameters: a line through points, and a direction that separates two classes. The service computes
 * losses and the descent by their gradients.
 */

import { queryOf } from "./curve.js";
import { numbers, tensor } from "./safetensors.js";

/** Pseudo-random numbers with a fixed seed, so that everybody sees the same points. */
function noise(seed) {
  let state = seed;
  const even = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
  return () => even() + even() + even() + even() - 2; // approximately normal, with a standard deviation of 0.58
}

const made = (count, seed, point) => {
  const random = noise(seed);
  return Array.from({ length: count }, (_, i) => point(i, random));
};
const rounded = (points) =>
  points.map((point) => ({ ...point, x: Number(point.x.toFixed(2)), y: Number(point.y.toFixed(2)) }));
const onLine = (count, seed) =>
  made(count, seed, (i, random) => {
    const x = -2.6 + (5.2 * i) / (count - 1);
    return { x, y: 0.9 * x + 0.5 + 0.6 * random() };
  });
const cloud = (count, seed, x, y, label, width = 1) =>
  made(count, seed, (_, random) => ({ x: x + width * random(), y: y + width * random(), label }));

export const MODELS = {
  line: {
    title: "A line",
    parameters: ["slope", "intercept"],
    spans: [
      [-3, 3],
      [-4, 4],
    ],
    view: { x: [-3, 3], y: [-5, 5] },
    start: [-2, -2.5],
    rate: 0.1,
    features: ({ x }) => [x, 1],
    losses: ["mse", "mae", "huber"],
    presets: {
      outliers: () => [...onLine(12, 3), { x: 1.9, y: -4.2 }, { x: 2.4, y: -3.6 }],
      clean: () => onLine(14, 3),
      "two lines": () => [
        ...onLine(9, 3),
        ...made(6, 8, (i, random) => {
          const x = -2.4 + i;
          return { x, y: -0.8 * x - 1 + 0.4 * random() };
        }),
      ],
    },
  },
  direction: {
    title: "Two classes",
    parameters: ["weight of x", "weight of y"],
    spans: [
      [-5, 5],
      [-5, 5],
    ],
    view: { x: [-3, 3], y: [-3, 3] },
    start: [-3.5, 3],
    rate: 0.8,
    features: ({ x, y }) => [x, y],
    losses: ["bce_with_logits", "sigmoid_focal", "multi_margin"],
    presets: {
      overlap: () => [...cloud(12, 5, 0.8, 0.6, 1, 1.5), ...cloud(12, 6, -0.8, -0.5, 0, 1.5)],
      imbalance: () => [...cloud(4, 7, 0.9, 0.8, 1, 1.4), ...cloud(24, 9, -0.7, 0.3, 0, 1.4)],
      outliers: () => [
        ...cloud(10, 5, 1, 0.8, 1),
        ...cloud(10, 6, -1, -0.7, 0),
        { x: -2.4, y: -2.1, label: 1 },
        { x: 2.3, y: 2.4, label: 0 },
      ],
    },
  },
};
for (const { presets } of Object.values(MODELS))
  for (const [name, points] of Object.entries(presets)) presets[name] = () => rounded(points());

const domain = (loss, name) => loss.inputs.find((input) => input.name === name)?.types.map((type) => type.domain) ?? [];

/** The losses that can train a model: those of independent rows with one score each. */
export function fitting(model, losses) {
  return losses.filter((loss) => {
    const required = loss.inputs.filter((input) => !input.optional).map((input) => input.name);
    if (
      !loss.available ||
      loss.batching !== "rows" ||
      !loss.parameters.reduction?.enum?.includes("none") ||
      String(required) !== "prediction,target"
    )
      return false;
    if (model === MODELS.line) return loss.task === "regression" && domain(loss, "target").includes("finite");
    return (
      domain(loss, "prediction").includes("logits") &&
      (loss.task === "binary" || (loss.task === "multiclass" && domain(loss, "target").includes("class")))
    );
  });
}

const paired = (loss) => loss.task === "multiclass"; // two scores; the first is 0

/** The inputs of a loss for scores of the points; the scores may repeat the points. */
function inputs(model, loss, points, scores) {
  const n = scores.length;
  const repeated = Array.from(scores, (_, i) => points[i % points.length]);
  if (model === MODELS.line) return { prediction: tensor(scores), target: tensor(repeated.map(({ y }) => y)) };
  const labels = repeated.map(({ label }) => label);
  if (paired(loss))
    return {
      prediction: tensor(
        Array.from({ length: 2 * n }, (_, i) => (i % 2 ? scores[i >> 1] : 0)),
        [n, 2],
      ),
      target: tensor(labels, [n], "I64"),
    };
  return {
    prediction: tensor(scores),
    target: tensor(domain(loss, "target").includes("sign") ? labels.map((label) => 2 * label - 1) : labels),
  };
}

export const predict = (model, points, [a, b]) =>
  points.map((point) => {
    const [p, q] = model.features(point);
    return a * p + b * q;
  });

/** Evenly spaced values from one end of a span to the other. */
export const spaced = ([low, high], count) =>
  Array.from({ length: count }, (_, i) => low + ((high - low) * i) / (count - 1));

/** The loss at each point of a grid, in one request: rows by the second parameter, from low to high. */
export async function surface(api, { model, loss, parameters, points }, count, signal) {
  const [as, bs] = model.spans.map((span) => spaced(span, count));
  const scores = bs.flatMap((b) => as.flatMap((a) => predict(model, points, [a, b])));
  const { tensors } = await api.evaluateTensors(
    {
      loss: { name: loss.name, ...parameters, reduction: "none" },
      inputs: inputs(model, loss, points, scores),
      outputs: ["loss"],
    },
    signal,
  );
  const rows = tensors.loss.data;
  const values = new Float64Array(count * count);
  for (let i = 0; i < rows.length; i += 1) values[Math.floor(i / points.length)] += rows[i] / points.length;
  return { as, bs, values };
}

/** The path of gradient descent, in one request: `{ at, loss }` of each step; `diverged` if it ends early. */
export async function descend(api, { model, loss, parameters, points, rate }, start, steps, signal) {
  const { target } = inputs(
    model,
    loss,
    points,
    points.map(() => 0),
  );
  const setup = { features: points.map(model.features), target: numbers(target), start, rate, steps };
  const query = new URLSearchParams(queryOf({ ...parameters, ...setup }));
  const found = await api.json(`/v1/losses/${loss.name}/descent.json?${query}`, signal);
  const path = found.at.map((at, i) => ({ at, loss: found.loss[i] }));
  return Object.assign(path, { diverged: found.diverged });
}
