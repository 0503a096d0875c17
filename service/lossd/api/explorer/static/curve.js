/** Curves, as GET /v1/losses/{name}/curve.json has them. The catalogue lists the axes of each loss. */

import { untilStarted } from "./status.js";

const SINGLE_POINTS = 41;
const CONCURRENT = 4; // a browser opens six connections to a service; other tabs and the health checks need some

const waiting = [];
let active = 0;

/** Whether one request can hold all points, because the rows of the loss are independent. */
export const byRows = (loss) => loss.batching === "rows" && Boolean(loss.parameters.reduction?.enum?.includes("none"));

/** The defaults of an axis's further numbers, by name. */
export const defaultsOf = (axis) =>
  Object.fromEntries(Object.entries(axis.given).map(([name, { value }]) => [name, value]));

/** Parameters as pairs for a query. */
export const queryOf = (parameters) =>
  Object.entries(parameters).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]);

/**
 * The curve `{ x, values, slope, subject, jumps }`; slope and subject are null if no input changes along x. Throws a Problem.
 *
 * @param curve `{ loss: of the catalogue, axis, parameters, given: values of the axis's further numbers }`
 */
export async function draw(curve, { api, signal, points }) {
  const document = await ask(curve, { points }, api, signal);
  const [{ loss, gradient, gradient_of, jumps }] = document.series;
  return { x: document.x, values: loss, slope: gradient, subject: gradient_of, jumps };
}

/** The first request of a curve and the number of its requests: `{ first, count }`. */
export async function requestsOf(curve, { api, signal, ...options }) {
  const document = await ask(curve, { ...options, requests: true }, api, signal);
  return document.series[0].requests;
}

async function ask({ loss, axis, parameters, given = {} }, options, api, signal) {
  const chosen = { ...options, points: options.points ?? (byRows(loss) ? null : SINGLE_POINTS) };
  const query = new URLSearchParams([
    ["x", axis.name],
    ...queryOf({ ...axis.start, ...parameters }),
    ...Object.keys(axis.given).map((name) => [`at.${name}`, given[name] ?? axis.given[name].value]),
    ...Object.entries(chosen).filter(([, value]) => value !== null && value !== undefined),
  ]);
  await turn(signal);
  try {
    await untilStarted(signal);
    return await api.json(`/v1/losses/${loss.name}/curve.json?${query}`, signal);
  } finally {
    active -= 1;
    waiting.shift()?.();
  }
}

async function turn(signal) {
  while (active >= CONCURRENT)
    await new Promise((resolve) => {
      waiting.push(resolve);
    });
  if (signal?.aborted) {
    waiting.shift()?.();
    throw signal.reason;
  }
  active += 1;
}
