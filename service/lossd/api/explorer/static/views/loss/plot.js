/** Two plots over one x, loss and gradient, with a tip that shows the values at the cursor. */

import { h } from "../../dom.js";
import { stepped } from "../../keyboard.js";
import { short, swatch } from "../../plots.js";
import { sketch } from "../../sketches.js";

const PHONE_PX = 640;

/**
 * The plots: `{ element, x, lines, draw(results), mark(stale), forget() }`.
 *
 * `results` are curves with `color`, `label`, `x`, `values`, `slope` and `subject`; the first is the loss's own. After
 * `draw`, `x` has the points and `lines` the values `{ loss, slope }` of each result at these points.
 */
export async function curvePlot(loss, state, { plots, signal }) {
  const [upper, lower] = [h("div", { class: "plot" }), h("div", { class: "plot" })];
  const tip = h("div", { class: "tip number", hidden: true, "aria-hidden": "true" });
  const element = h(
    "div",
    {
      class: "plots",
      role: "slider",
      tabindex: 0,
      "aria-label": "Values of the curves; arrow keys move along x",
      "aria-valuenow": 0,
      onkeydown: moveCursor,
    },
    upper,
    lower,
    tip,
  );
  const self = { element, x: null, lines: null, draw, mark, forget };
  const cursor = { index: null, left: 0 };
  let results = [];

  // uPlot measures its element, so the caller shows `element` before it calls `start`.
  let lossPlot;
  let slopePlot;
  self.start = async () => {
    const link = `${loss.name}-${Math.random()}`;
    const height = (phone, desktop) => () => (innerWidth < PHONE_PX ? phone : desktop);
    lossPlot = await plots.curves(upper, {
      link,
      signal,
      onCursor: showTip,
      xLabel: () => "",
      yLabel: () => "loss",
      height: height(150, 320),
    });
    slopePlot = await plots.curves(lower, {
      link,
      signal,
      xLabel: () => state.axis.label,
      yLabel: () => "gradient",
      height: height(120, 220),
    });
  };
  return self;

  function draw(drawn) {
    results = drawn;
    const { x, slopes } = atSteps(results);
    const lines = results.map((result, i) => ({
      loss: interpolate(result.x, result.values, x),
      slope: isComparable(result, results[0]) ? slopes[i] : null,
    }));
    Object.assign(self, { x, lines });
    const style = (result, i) => ({
      color: result.color,
      width: i ? 1.75 : 3,
      dash: result.dash,
      fill: i === 0,
    });
    lossPlot.draw({ x, series: results.map((result, i) => ({ ...style(result, i), values: lines[i].loss })) });
    const sloped = results.map((result, i) => ({ ...style(result, i), fill: false, values: lines[i].slope }));
    const shown = sloped.filter(({ values }) => values);
    lower.hidden = !shown.length;
    if (shown.length) slopePlot.draw({ x, series: shown });
    element.setAttribute("aria-valuemax", x.length - 1);
    showTip(cursor.index);
  }

  function mark(stale) {
    element.toggleAttribute("data-stale", stale);
    if (!stale) element.dataset.drawn = Number(element.dataset.drawn ?? 0) + 1;
  }

  /** Forget the ranges of the axes. */
  function forget() {
    lossPlot.forget();
    slopePlot.forget();
  }

  function showTip(index, left) {
    cursor.index = index;
    if (left !== undefined) cursor.left = left;
    tip.hidden = index === null;
    if (index === null || !self.x) return;
    const at = self.x[index];
    const picture = sketch(state.axis, at, state.given);
    tip.replaceChildren(...[picture, valuesAt(index)].filter(Boolean));
    const right = cursor.left + 18;
    const fits = right + tip.offsetWidth <= element.clientWidth;
    tip.style.setProperty("left", `${Math.max(0, fits ? right : cursor.left - tip.offsetWidth - 18)}px`);
    const spoken = results.map((result, i) => `${result.label} ${plots.short(self.lines[i].loss[index])}`);
    element.setAttribute("aria-valuenow", index);
    element.setAttribute("aria-valuetext", [`x ${place(at)}`, ...spoken].join("; "));
  }

  function valuesAt(index) {
    const heads = [`x = ${place(self.x[index])}`, "loss", !lower.hidden && "gradient"].filter(Boolean);
    const rows = results.map((result, i) =>
      h(
        "tr",
        { style: { "--color": `var(--${result.color})` } },
        h("td", {}, swatch(result), result.label),
        h("td", {}, plots.short(self.lines[i].loss[index])),
        self.lines[i].slope && h("td", {}, plots.short(self.lines[i].slope[index])),
      ),
    );
    const head = h(
      "tr",
      {},
      heads.map((text) => h("th", {}, text)),
    );
    return h("table", {}, h("thead", {}, head), h("tbody", {}, rows));
  }

  function moveCursor(event) {
    const to = stepped(event.key, cursor.index, self.x.length - 1);
    if (to === null) return;
    event.preventDefault();
    lossPlot.point(to);
  }
}

/** A point of an axis in few digits; the sides of a jump read as the jump. */
export const place = (x) => short(Number(x.toFixed(6)));

/** Whether two gradients may share a plot. Those of a score and of its probability may not. */
export function isComparable(one, other) {
  const kind = (subject) => /log-probability|probability/.exec(subject)?.[0] ?? "other";
  return Boolean(one.slope) && (!other.subject || kind(one.subject) === kind(other.subject));
}

const CLOSE = 1e-9; // of the axis: how far the two sides of a jump are from it

/**
 * The points that all curves share, and the slopes there: those of the curve with the most points, and both sides of
 * each jump, so that a step is drawn as a step.
 */
export function atSteps(curves) {
  const finest = curves.reduce((best, { x }) => (x.length > best.length ? x : best), []);
  const air = CLOSE * (finest.at(-1) - finest[0]);
  const sides = ({ jumps }) =>
    jumps.flatMap(({ at, below, above }) => [
      [at - air, below],
      [at + air, above],
    ]);
  const inside = ([at]) => at >= finest[0] && at <= finest.at(-1);
  const added = curves.flatMap(sides).filter(inside);
  const x = [...new Set([...finest, ...added.map(([at]) => at)])].sort((a, b) => a - b);
  const slopes = curves.map((curve) => {
    if (!curve.slope) return null;
    const points = [...curve.x.map((at, i) => [at, curve.slope[i]]), ...sides(curve).filter(inside)];
    points.sort(([a], [b]) => a - b);
    return interpolate(
      points.map(([at]) => at),
      points.map(([, slope]) => slope),
      x,
    );
  });
  return { x, slopes };
}

/** The values of a curve at other points of x, by linear interpolation. */
function interpolate(x, y, points) {
  if (x === points) return y;
  let i = 0;
  return points.map((at) => {
    while (i < x.length - 2 && x[i + 1] < at) i += 1;
    return y[i] + ((y[i + 1] - y[i]) * (at - x[i])) / (x[i + 1] - x[i]);
  });
}
