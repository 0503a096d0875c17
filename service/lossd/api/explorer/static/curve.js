/** Curves: the requests that make one, sent to POST /v1/evaluate, and the points that the answers are. */

import { givenOf } from "./axes.js";
import { untilStarted } from "./status.js";

const ROWS = 161;
const SINGLE = 41;
const AT_ONCE = 4; // a browser has six connections to a service, and other tabs and the state of the service need some
const KEPT = 1500;

const kept = new Map();
const waiting = [];
let busy = 0;

/** The parameters that a loss of the catalogue has by default. */
export function defaultsOf(loss) {
  const known = Object.entries(loss.parameters).filter(([name, schema]) => name !== "reduction" && "default" in schema);
  return Object.fromEntries(known.map(([name, schema]) => [name, schema.default]));
}

/** Whether one request can hold all points, because no row knows of another. */
export const byRows = (loss) => loss.batching === "rows" && Boolean(loss.parameters.reduction?.enum?.includes("none"));

/**
 * What is asked for a curve: `{ x, requests: [{ body, scene }], rows }`.
 *
 * @param curve `{ loss: of the catalogue, axis, parameters: those that are set, given }`
 * @param points how many; as many as look smooth by default
 */
export function plan({ loss, axis, parameters, given }, points) {
  const rows = byRows(loss);
  const count = points ?? axis.points ?? (rows ? ROWS : SINGLE);
  const place = (part) => (axis.dense ? (1 - Math.cos(Math.PI * part)) / 2 : part);
  const x = Array.from({ length: count }, (_, i) =>
    rounded(axis.low + (axis.high - axis.low) * place(i / (count - 1))),
  );
  const set = { ...axis.start, ...parameters };
  const known = { ...defaultsOf(loss), ...set };
  const numbers = {
    ...givenOf(axis),
    ...Object.fromEntries(Object.entries(given ?? {}).filter(([name]) => name in (axis.given ?? {}))),
  };
  const requests = (rows ? [x] : x.map((one) => [one])).map((xs) => {
    const scene = axis.scene(xs, known, numbers);
    const inputs = Object.fromEntries(Object.entries(scene.inputs).map(([name, value]) => [name, rounded(value)]));
    const body = {
      loss: { name: loss.name, ...set, ...scene.parameters, ...(rows && { reduction: "none" }) },
      inputs,
      outputs: ["loss", ...Object.keys(scene.toward).map((name) => `gradient.${name}`)],
    };
    return { body, scene };
  });
  return { x, requests, rows };
}

/** The curve: `{ x, values, slope (null where there is none), subject, requests }`. Throws the Problem of any point. */
export async function draw(curve, { api, signal, points }) {
  const { x, requests, rows } = plan(curve, points);
  const answers = await Promise.all(requests.map(({ body }) => answer(body, api, signal)));
  const found = [];
  const slope = [];
  const summed = curve.loss.parameters.reduction?.default === "batchmean";
  for (const [i, { scene }] of requests.entries()) {
    const values = rows ? answers[i].loss : [answers[i].loss];
    for (const [point, value] of values.entries()) {
      const parts = [value].flat(Infinity);
      const share = summed ? 1 : 1 / parts.length; // what the loss's own reduction does to the parts of one row
      found.push(share * parts.reduce((sum, part) => sum + part, 0));
      slope.push(share * along(answers[i].gradient, scene, rows ? point : null));
    }
  }
  const { subject } = requests[0].scene;
  return { x, values: found, slope: subject && slope, subject, requests: requests.map(({ body }) => body) };
}

/** The gradient's share in the direction that x has at a point, or in all of a request where that is null. */
function along(gradient, { toward }, point) {
  const of = (tensor) => (point === null ? [tensor] : [tensor[point]]).flat(Infinity);
  let sum = 0;
  for (const [name, direction] of Object.entries(toward)) {
    const entries = of(gradient[name]);
    for (const [i, step] of of(direction).entries()) if (step) sum += step * entries[i];
  }
  return sum;
}

/** An answer, kept for when it is asked for again. Only so many are asked for at once. */
async function answer(body, api, signal) {
  const key = JSON.stringify(body);
  let found = kept.get(key);
  kept.delete(key);
  if (!found) {
    await turn(signal);
    try {
      await untilStarted(signal);
      found = await api.evaluate(body, signal);
    } finally {
      busy -= 1;
      waiting.shift()?.();
    }
  }
  kept.set(key, found); // the latest comes last, the first goes first
  if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  return found;
}

async function turn(signal) {
  while (busy >= AT_ONCE)
    await new Promise((resolve) => {
      waiting.push(resolve);
    });
  if (signal?.aborted) {
    waiting.shift()?.();
    throw signal.reason;
  }
  busy += 1;
}

/** To the digits that float32 has, so that requests read well. */
function rounded(value) {
  return Array.isArray(value) ? value.map(rounded) : Number(value.toPrecision(8));
}
