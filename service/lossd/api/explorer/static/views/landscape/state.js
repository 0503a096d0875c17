/** The state of the landscape: `{ model, preset, points, start, rate, steps, shown, label, losses }`, and its address. */

import { fitting, MODELS } from "../../linear.js";

export const MOST = { losses: 4, points: 60, steps: 200 };

/** The state in which a model begins. */
export function initial(name) {
  const model = MODELS[name];
  const [preset] = Object.keys(model.presets);
  return {
    model: name,
    preset,
    points: model.presets[preset](),
    start: model.start,
    rate: model.rate,
    steps: 60,
    shown: 0,
    label: 1,
    losses: model.losses.map((loss) => ({ name: loss, parameters: {} })),
  };
}

/** Points as lines of numbers. */
export const asText = (points) => points.map((point) => Object.values(point).join(", ")).join("\n");

/** Points from lines of numbers; null if a line is not a point. */
export function fromText(text, model) {
  const lines = text.split(/[\n;]/).filter((line) => line.trim());
  const rows = lines.map((line) =>
    line
      .trim()
      .split(/[\s,]+/)
      .map(Number),
  );
  const isClass = (label) => label === 0 || label === 1;
  const isPoint = (row) => (model === "line" ? row.length === 2 : row.length === 3 && isClass(row[2]));
  const valid = rows.every((row) => row.every(Number.isFinite) && isPoint(row));
  if (!valid || !rows.length || rows.length > MOST.points) return null;
  return rows.map(([x, y, label]) => (model === "line" ? { x, y } : { x, y, label }));
}

/** The state that an address describes. */
export function fromQuery(query, losses) {
  const state = initial(query.get("model") in MODELS ? query.get("model") : "line");
  const { presets } = MODELS[state.model];
  const preset = query.get("preset");
  if (preset in presets) Object.assign(state, { preset, points: presets[preset]() });
  const points = query.has("points") && fromText(query.get("points"), state.model);
  if (points) Object.assign(state, { points, preset: null });
  const readNumber = (name, low, high) => {
    const value = Number(query.get(name));
    if (query.has(name) && value >= low && value <= high) state[name] = value;
  };
  readNumber("rate", 1e-6, 100);
  readNumber("steps", 1, MOST.steps);
  const start = query.get("start")?.split(",").map(Number);
  if (start?.length === 2 && start.every(Number.isFinite)) state.start = start;
  state.losses = lossesOf(query.get("losses"), state, losses);
  readNumber("shown", 0, state.losses.length - 1);
  return state;
}

function lossesOf(text, state, losses) {
  const fit = new Set(fitting(MODELS[state.model], losses).map(({ name }) => name));
  try {
    const listed = JSON.parse(text ?? "[]").filter(({ name }) => fit.has(name));
    const read = listed.slice(0, MOST.losses).map(({ name, parameters }) => ({ name, parameters: parameters ?? {} }));
    return read.length ? read : state.losses;
  } catch {
    return state.losses; // the address was cut
  }
}

/** The query that describes a state: only what differs from the beginning. */
export function toQuery(state) {
  const first = initial(state.model);
  const query = new URLSearchParams();
  if (state.model !== "line") query.set("model", state.model);
  if (state.preset === null) query.set("points", asText(state.points).replaceAll(", ", ",").replaceAll("\n", ";"));
  else if (state.preset !== first.preset) query.set("preset", state.preset);
  for (const name of ["rate", "steps", "shown"]) if (state[name] !== first[name]) query.set(name, state[name]);
  if (String(state.start) !== String(first.start)) query.set("start", state.start.join(","));
  if (JSON.stringify(state.losses) !== JSON.stringify(first.losses)) query.set("losses", JSON.stringify(state.losses));
  return query;
}
