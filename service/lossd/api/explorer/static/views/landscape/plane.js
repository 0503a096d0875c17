/** A square plane of two numbers: coordinates in percent, ticks, pointer and keyboard. */

import { h } from "../../dom.js";
import { spaced } from "../../linear.js";
import { short } from "../../plots.js";

export const SIZE = 100;

/** The direction of each arrow key. */
export const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

/** The step of an arrow key along both numbers; null for other keys. */
export const arrowStep = ({ key, shiftKey }) => ARROWS[key]?.map((way) => way * (shiftKey ? 1 : 0.1)) ?? null;

const percent = (value, [low, high]) => (SIZE * (value - low)) / (high - low);

/** A point as percent from the left and from the top. */
export const toPercent = ([x, y], [across, up]) => [percent(x, across), SIZE - percent(y, up)];

/** Move an element to a place in percent. */
export function put(element, [left, top]) {
  element.style.setProperty("left", `${left}%`);
  element.style.setProperty("top", `${top}%`);
}

/** A number within its span, to two decimals. */
export const clamp = (value, [low, high]) => Number(Math.min(high, Math.max(low, value)).toFixed(2));

/** The point under the pointer. */
export function pointAt(event, element, spans) {
  const box = element.getBoundingClientRect();
  const fractions = [(event.clientX - box.left) / box.width, 1 - (event.clientY - box.top) / box.height];
  return fractions.map((fraction, k) => clamp(spans[k][0] + fraction * (spans[k][1] - spans[k][0]), spans[k]));
}

/** Call `move` for each move of the pointer until its button is released, then `done`. */
export function follow(element, event, move, done) {
  element.setPointerCapture(event.pointerId);
  const ended = new AbortController();
  const { signal } = ended;
  element.addEventListener("pointermove", move, { signal });
  const end = () => {
    ended.abort();
    done?.();
  };
  for (const name of ["pointerup", "pointercancel"]) element.addEventListener(name, end, { signal });
}

/** The numbers along both sides of a plane. */
export function ticks([across, up], names) {
  const marks = (span) => spaced(span, 5).slice(1, -1);
  return [
    ...marks(across).map((x) => h("span", { class: "across", style: { left: `${percent(x, across)}%` } }, short(x))),
    ...marks(up).map((y) => h("span", { class: "upward", style: { top: `${SIZE - percent(y, up)}%` } }, short(y))),
    h("span", { class: "across name" }, `${names[0]} →`),
    h("span", { class: "upward name" }, `${names[1]} →`),
  ];
}
