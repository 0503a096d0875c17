/** Values with their intervals as small drawings on a common axis. They are decoration: put the numbers beside each. */

import { h, svg } from "./dom.js";
import { short } from "./plots.js";
import { digitsOf } from "./scores.js";

const EDGE = 3; // percent of the width at either end, so that a point at the end of the axis is whole
const TICKS = 4;

/**
 * An axis that holds all numbers: `{ low, high, ticks, at(value) }`; `at` is a place in percent of the width.
 *
 * @param numbers Those that are not finite are left out.
 * @param around A number that is in the middle of the axis.
 */
export function axisOf(numbers, { around = null } = {}) {
  const finite = numbers.filter(Number.isFinite);
  if (!finite.length) finite.push(around ?? 0);
  let [low, high] = [Math.min(...finite), Math.max(...finite)];
  if (around !== null) {
    const reach = Math.max(high - around, around - low) || 1;
    [low, high] = [around - reach, around + reach];
  }
  if (low === high) {
    const share = low >= 0 && low <= 1; // the axis of scores ends at 0 and 1
    const air = Math.abs(low) / 10 || (share ? 0.1 : 1);
    [low, high] = share ? [Math.max(0, low - air), Math.min(1, high + air)] : [low - air, high + air];
  }
  const [step, first, last] = steps(low, high);
  const ticks = Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
  const [from, to] = [ticks[0], ticks.at(-1)];
  const at = (value) => EDGE + ((100 - 2 * EDGE) * (Math.min(to, Math.max(from, value)) - from)) / (to - from);
  return { low: from, high: to, ticks, at };
}

/** The finest step of 1, 2 or 5 times a power of ten that makes few ticks, and the first and last multiple of it. */
function steps(low, high) {
  const power = 10 ** Math.floor(Math.log10((high - low) / TICKS));
  for (const times of [1, 2, 5, 10, 20, 50]) {
    const step = times * power;
    const [first, last] = [Math.floor(low / step + 1e-9), Math.ceil(high / step - 1e-9)];
    if (last - first <= TICKS) return [step, first, last];
  }
  return [high - low, low / (high - low), high / (high - low)];
}

/** The axis with its numbers, for the head of a column. */
export function scale(axis) {
  return svg(
    "svg",
    { class: "whisker scale-of", "aria-hidden": "true" },
    axis.ticks.map((tick) => {
      const end = tick === axis.low ? "start" : tick === axis.high ? "end" : "middle";
      const x = `${end === "start" ? 0 : end === "end" ? 100 : axis.at(tick)}%`;
      return svg("text", { x, y: "75%", "text-anchor": end }, short(tick));
    }),
  );
}

/**
 * A value and its interval on an axis.
 *
 * @param tone "good", "bad", "quiet" or null: a colour. Say in text what it means.
 * @param line A number with a line at it, such as 0 or the value of all rows.
 */
export function whisker({ value, low, high }, axis, { tone = null, line = null } = {}) {
  const known = Number.isFinite(value);
  const between = Number.isFinite(low) && Number.isFinite(high);
  const x = (number) => `${axis.at(number).toFixed(3)}%`;
  const upright = (number, kind) => svg("line", { class: kind, x1: x(number), x2: x(number), y1: "28%", y2: "72%" });
  return svg(
    "svg",
    { class: "whisker", "data-tone": tone, "aria-hidden": "true" },
    axis.ticks.map((tick) => svg("line", { class: "tick", x1: x(tick), x2: x(tick), y1: 0, y2: "100%" })),
    line !== null &&
      Number.isFinite(line) &&
      svg("line", { class: "zero", x1: x(line), x2: x(line), y1: 0, y2: "100%" }),
    between && [
      svg("line", { class: "reach", x1: x(low), x2: x(high), y1: "50%", y2: "50%" }),
      upright(low, "end"),
      upright(high, "end"),
    ],
    known && svg("circle", { cx: x(value), cy: "50%", r: 4.5 }),
  );
}

/** The ends of an interval as a cell of a table. */
export function intervalCell({ low, high }, options) {
  const known = Number.isFinite(low) && Number.isFinite(high);
  const text = known && digitsOf(low, high, options);
  const end = (value) => h("span", { class: "end" }, text(value));
  const ends = known ? [end(low), " to ", end(high)] : "–";
  return h("td", { class: "number interval-cell", "data-missing": !known }, ends);
}
