/** The plane of the two parameters: one loss as colours and isolines, and the paths of gradient descent. */

import { contour, leveled, paint } from "../../contours.js";
import { h, svg } from "../../dom.js";
import { rgb } from "../../heat.js";
import { MODELS } from "../../linear.js";
import { short } from "../../plots.js";
import { arrowStep, clamp, follow, pointAt, put, SIZE, ticks, toPercent } from "./plane.js";

export const GRID = 49;
const LEVELS = 13;
const FAR = 1e4; // a path that diverges leaves the picture here

/** The plane: `{ element, marks, draw(surface), drawScale(), drawStart(), drawPaths(paths), clear() }`. */
export function surfacePlane(state, { theme, moved }) {
  const overlay = svg("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const canvas = h("canvas", { "aria-hidden": "true" });
  const handle = h("button", {
    type: "button",
    class: "handle",
    role: "application",
    "aria-roledescription": "place",
    onkeydown: pressKey,
  });
  const ground = h("div", { class: "ground" }, canvas);
  const element = h("div", { class: "land", onpointerdown: drag }, ground, overlay, handle);
  const marks = h("div", { class: "ticks", "aria-hidden": "true" });
  const model = () => MODELS[state.model];
  const place = (at) => toPercent(at, model().spans);
  return { element, marks, draw, drawScale, drawStart, drawPaths, clear };

  function drawScale() {
    marks.replaceChildren(...ticks(model().spans, model().parameters));
  }

  /** Draw a surface, and return its lowest point on the grid: `{ at, value }`. */
  function draw({ values, as, bs }) {
    const levels = leveled(values);
    paint(canvas, levels, GRID, rgb(theme.color("accent")), rgb(theme.color("card")));
    element.style.setProperty("--grid", GRID);
    const lowest = values.indexOf(Math.min(...values));
    const at = [as[lowest % GRID], bs[Math.floor(lowest / GRID)]];
    const [x, y] = place(at);
    const isolines = Array.from({ length: LEVELS }, (_, i) =>
      svg("path", { class: "iso", d: contour(levels, GRID, (i + 0.5) / LEVELS, SIZE) }),
    );
    const cross = svg("path", { class: "lowest", d: `M${x - 1.6} ${y - 1.6}l3.2 3.2m0 -3.2l-3.2 3.2` });
    overlay.replaceChildren(...isolines, cross, svg("g", { class: "ways" }));
    return { at, value: values[lowest] };
  }

  /** Draw the paths; each has its points `at` and its colour. */
  function drawPaths(paths) {
    const ways = overlay.querySelector(".ways");
    if (!ways) return;
    const limited = (value) => Math.min(FAR, Math.max(-FAR, value)).toFixed(2);
    ways.replaceChildren(
      ...paths.flatMap(({ points, color }) => {
        const d = points.map((at, step) => (step ? "L" : "M") + place(at).map(limited).join(" ")).join("");
        const way = svg("path", { class: "way", d, style: { "--color": `var(--${color})` } });
        return [svg("path", { class: "halo", d }), way];
      }),
    );
  }

  function drawStart() {
    put(handle, place(state.start));
    const values = model().parameters.map((name, k) => `${name} ${short(state.start[k])}`);
    handle.setAttribute("aria-label", `Start of the descent: ${values.join(", ")}; arrow keys move it`);
  }

  function clear() {
    canvas.width = 0;
    canvas.height = 0;
    overlay.replaceChildren();
  }

  function drag(event) {
    if (event.button) return;
    event.preventDefault();
    const move = (pointer) => {
      state.start = pointAt(pointer, element, model().spans);
      moved();
    };
    move(event);
    handle.focus({ preventScroll: true });
    follow(element, event, move);
  }

  function pressKey(event) {
    const step = arrowStep(event);
    if (!step) return;
    event.preventDefault();
    state.start = state.start.map((value, k) => clamp(value + step[k], model().spans[k]));
    moved();
  }
}
