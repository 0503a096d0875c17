/** The plane of the points, with the line that each loss has fitted. */

import { h, svg } from "../../dom.js";
import { MODELS } from "../../linear.js";
import { short } from "../../plots.js";
import { arrowStep, clamp, follow, pointAt, put, SIZE, ticks, toPercent } from "./plane.js";
import { MOST } from "./state.js";

const DOUBLE_MS = 400;
const DOUBLE_PX = 6;
const OUTSIDE = 9; // a distance from the origin beyond every plane

/**
 * The plane: `{ element, marks, draw(focused), drawScale(), drawFits(fits), append(point) }`.
 *
 * `edited(focused)` is called when the reader has changed the points, `moved()` while one is dragged.
 */
export function pointsPlane(state, { edited, moved, announce }) {
  const lines = svg("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const dots = h("div", {
    class: "dots",
    role: "group",
    "aria-label": "Points; arrow keys move one, Page Up and Page Down choose another, Delete removes it",
  });
  const element = h("div", { class: "land data", onpointerdown: addOrDrag }, lines, dots);
  const marks = h("div", { class: "ticks", "aria-hidden": "true" });
  let pressed = null;
  const spans = () => [MODELS[state.model].view.x, MODELS[state.model].view.y];
  const place = ({ x, y }) => toPercent([x, y], spans());
  return { element, marks, draw, drawScale, drawFits, append };

  function drawScale() {
    marks.replaceChildren(...ticks(spans(), ["x", "y"]));
  }

  function draw(focused = null) {
    dots.replaceChildren(...state.points.map((point, i) => dotOf(point, i, i === (focused ?? 0))));
    if (focused !== null) dots.children[focused]?.focus();
  }

  function dotOf(point, i, reachable) {
    const label = "label" in point ? `, class ${point.label}` : "";
    const name = `Point ${i + 1} of ${state.points.length}: x ${short(point.x)}, y ${short(point.y)}${label}`;
    const dot = h("button", {
      type: "button",
      class: point.label === 0 ? "dot-point other" : "dot-point",
      tabindex: reachable ? 0 : -1,
      "aria-label": name,
      onkeydown: (event) => pressKey(event, i),
    });
    put(dot, place(point));
    return dot;
  }

  /** Draw the line of each model; `fits` has its two parameters and its colour. */
  function drawFits(fits) {
    const paths = fits.map(({ at, color }) => {
      const ends = lineOf(at).map((end) => place(end).map((value) => value.toFixed(2)));
      const d = ends.map((end, i) => (i ? "L" : "M") + end.join(" ")).join("");
      return svg("path", { class: "way", d, style: { "--color": `var(--${color})` } });
    });
    lines.replaceChildren(...paths);
  }

  /** Two points of a model's line. */
  function lineOf([a, b]) {
    if (state.model === "line") return spans()[0].map((x) => ({ x, y: a * x + b }));
    const length = Math.hypot(a, b) || 1;
    return [OUTSIDE, -OUTSIDE].map((far) => ({ x: (-b / length) * far, y: (a / length) * far }));
  }

  function append(point) {
    if (state.points.length >= MOST.points) return false;
    state.points = [...state.points, { ...point, ...(state.model === "direction" && { label: state.label }) }];
    edited(state.points.length - 1);
    return true;
  }

  function remove(i) {
    if (state.points.length < 2) return;
    state.points = state.points.filter((_, k) => k !== i);
    edited(Math.min(i, state.points.length - 1));
    announce(`${state.points.length} points are left`);
  }

  function replace(i, point) {
    state.points = state.points.map((old, k) => (k === i ? { ...old, ...point } : old));
  }

  function addOrDrag(event) {
    if (event.button) return;
    event.preventDefault();
    const at = (pointer) => {
      const [x, y] = pointAt(pointer, element, spans());
      return { x, y };
    };
    let i = [...dots.children].indexOf(event.target);
    if (i < 0) {
      if (!append(at(event))) return;
      i = state.points.length - 1;
      pressed = null;
    } else if (isSecondPress(event, i)) {
      // Not a dblclick event: the first press may have replaced the dot. A dragged dot is not removed.
      pressed = null;
      remove(i);
      return;
    } else {
      pressed = { i, at: event.timeStamp, x: event.clientX, y: event.clientY };
      dots.children[i].focus({ preventScroll: true });
    }
    const drag = (pointer) => {
      replace(i, at(pointer));
      put(dots.children[i], place(state.points[i]));
      moved();
    };
    follow(element, event, drag, () => {
      if (state.preset === null) edited(i);
    });
  }

  function isSecondPress({ timeStamp, clientX, clientY }, i) {
    const soon = pressed?.i === i && timeStamp - pressed.at < DOUBLE_MS;
    return soon && Math.hypot(clientX - pressed.x, clientY - pressed.y) < DOUBLE_PX;
  }

  function pressKey(event, i) {
    const step = arrowStep(event);
    if (step) {
      const { x, y } = state.points[i];
      replace(i, { x: clamp(x + step[0], spans()[0]), y: clamp(y + step[1], spans()[1]) });
      edited(i);
    } else if (event.key === "PageDown" || event.key === "PageUp") {
      const next = (i + (event.key === "PageDown" ? 1 : -1) + state.points.length) % state.points.length;
      for (const [k, dot] of [...dots.children].entries()) dot.tabIndex = k === next ? 0 : -1;
      dots.children[next].focus();
    } else if (event.key === "Delete" || event.key === "Backspace") remove(i);
    else return;
    event.preventDefault();
  }
}
