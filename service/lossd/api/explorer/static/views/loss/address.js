/** The address of a loss view: what is drawn, in the query. */

import { defaultsOf, queryOf } from "../../curve.js";
import { beside } from "../../presets.js";

const GIVEN = "at.";

/** The state that an address describes: `{ axis, given, parameters, others }`. */
export function readAddress(query, loss, losses) {
  const { axes } = loss;
  const axis = axes.find(({ name }) => name === query.get("x")) ?? axes[0];
  const given = defaultsOf(axis);
  const parameters = {};
  for (const [name, text] of query) {
    if (name.startsWith(GIVEN) && name.slice(GIVEN.length) in given) {
      if (text.trim() && Number.isFinite(Number(text))) given[name.slice(GIVEN.length)] = Number(text);
    } else if (name in loss.parameters && fits(parsed(text), loss.parameters[name])) parameters[name] = parsed(text);
  }
  const others = query.has("with")
    ? query.getAll("with").filter(Boolean).map(readCurve)
    : beside(loss.name).map((curve) => ({ ...curve, parameters: { ...curve.parameters } }));
  const drawable = ({ name }) =>
    axisOf(
      losses.find((entry) => entry.name === name),
      axis.name,
    );
  return { axis, given, parameters, others: others.filter(drawable) };
}

/** The axis of a loss by its name; undefined for a loss without it. */
export const axisOf = (loss, name) => loss?.axes.find((axis) => axis.name === name);

const changedNumbers = (axis, given) =>
  Object.entries(defaultsOf(axis))
    .filter(([name, value]) => given[name] !== value)
    .map(([name]) => [GIVEN + name, given[name]]);

/** Put the state into the address. */
export function writeAddress({ navigate, path }, loss, { axis, given, parameters, others }) {
  const query = new URLSearchParams(queryOf(parameters));
  if (axis !== loss.axes[0]) query.set("x", axis.name);
  for (const [name, value] of changedNumbers(axis, given)) query.set(name, value);
  if (JSON.stringify(others) !== JSON.stringify(beside(loss.name)))
    for (const curve of others.length ? others : [null]) query.append("with", curve ? curveText(curve) : "");
  navigate(path, query, { replace: true });
}

const curveText = ({ name, parameters }) => [name, ...queryOf(parameters).map((pair) => pair.join("="))].join(";");

function readCurve(text) {
  const [name, ...pairs] = text.split(";");
  return {
    name,
    parameters: Object.fromEntries(
      pairs.map((pair) => [pair.slice(0, pair.indexOf("=")), parsed(pair.slice(pair.indexOf("=") + 1))]),
    ),
  };
}

/** Whether a value has the type of a parameter, so that the field can show it. The service checks its bounds. */
function fits(value, schema) {
  const kind = value === null ? "null" : Array.isArray(value) ? "array" : typeof value;
  const kinds = (schema.anyOf ?? [schema]).flatMap(
    (arm) => arm.type ?? (arm.enum ? arm.enum.map((entry) => typeof entry) : [kind]),
  );
  return kinds.includes(kind) || (kind === "number" && kinds.includes("integer"));
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** The query of curve.svg: one parameter with several values, and other losses with their defaults. */
export function pictureQuery(loss, { axis, given, parameters, others }) {
  const query = new URLSearchParams([
    ["x", axis.name],
    ...queryOf({ ...axis.start, ...parameters }),
    ...changedNumbers(axis, given),
  ]);
  const pinned = others.filter(({ name }) => name === loss.name).flatMap((curve) => queryOf(curve.parameters));
  const [varied] = pinned[0] ?? [];
  if (varied && !query.has(varied)) query.append(...queryOf({ [varied]: loss.parameters[varied].default })[0]);
  for (const [name, value] of pinned)
    if (name === varied && !query.getAll(name).includes(value)) query.append(name, value);
  for (const { name, parameters: set } of others)
    if (name !== loss.name && !Object.keys(set).length) query.append("with", name);
  return query;
}
