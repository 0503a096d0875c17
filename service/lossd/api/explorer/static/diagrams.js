/** ROC, precision–recall and reliability curves of one or several runs, with a reading at a point and a table. */

import { aligned } from "./decimals.js";
import { h, patch, scrollRegion } from "./dom.js";
import { stepped } from "./keyboard.js";
import { figure, short } from "./plots.js";

const MOST_ROWS = 41;

/**
 * The diagrams, by the metric that each draws. `points` has x, y and what else is known of each point; `picture` is the
 * service's name of the picture.
 */
export const DIAGRAMS = {
  roc_curve: {
    title: "ROC curve",
    picture: "roc",
    x: "false positive rate",
    y: "true positive rate",
    further: "threshold",
    diagonal: true,
    points: ({ fpr, tpr, thresholds }) => ({ x: fpr, y: tpr, further: thresholds }),
  },
  pr_curve: {
    title: "Precision and recall",
    picture: "pr",
    x: "recall",
    y: "precision",
    further: "threshold",
    // The last point, of recall 0, has no threshold.
    points: ({ precision, recall, thresholds }) => ({
      x: recall.toReversed(),
      y: precision.toReversed(),
      further: precision.map((_, i) => thresholds[i] ?? null).toReversed(),
    }),
  },
  reliability: {
    title: "Reliability",
    picture: "reliability",
    x: "mean predicted probability",
    y: "accuracy",
    further: "entries",
    diagonal: true,
    dots: true,
    points: ({ confidence, accuracy, count }) => {
      const filled = count.map((_, i) => i).filter((i) => count[i] > 0);
      const at = (values) => filled.map((i) => values[i]);
      return { x: at(confidence), y: at(accuracy), further: at(count) };
    },
  },
};

/** Whether a value of a metric can be drawn: a curve, or a list of curves of labels. */
export const isDrawable = (value) => Boolean(value) && typeof value === "object" && Object.values(value).length > 0;

/**
 * A diagram as a card: `{ element, start(), draw(lines) }`. Show `element` before `start`.
 *
 * `lines` are `{ name, color, value: of the metric }`; the values may be lists with a curve for each label. `tools` is an
 * element for the card's head, such as a button.
 */
export function diagram(metric, { plots, signal }, tools = null) {
  const kind = DIAGRAMS[metric];
  const host = h("div", { class: "plot" });
  const reading = h("p", { class: "small quiet number reading" });
  const slider = h(
    "div",
    {
      class: "plots",
      role: "slider",
      tabindex: 0,
      "aria-label": `${kind.title}; arrow keys move along it`,
      "aria-valuenow": 0,
      onkeydown: move,
    },
    host,
  );
  const select = h("select", { "aria-label": `Label of ${kind.title}`, onchange: () => show() });
  const label = h("div", { class: "narrow", hidden: true }, select);
  const fold = h("details", { ontoggle: () => fillTable() }, h("summary", {}, "Table of values"));
  const legend = h("ul", { class: "legend" });
  const element = h(
    "section",
    { class: "card more diagram" },
    h("div", { class: "row spread" }, h("h2", {}, kind.title), h("div", { class: "row" }, label, tools)),
    legend,
    slider,
    reading,
    fold,
  );
  let plot = null;
  let lines = [];
  let merged = { x: [], at: [] };
  let index = null;

  async function start() {
    plot = await plots.curves(host, {
      height: () => 260,
      xLabel: () => kind.x,
      yLabel: () => kind.y,
      link: `${metric}-${Math.random()}`,
      onCursor: read,
      signal,
    });
  }

  function draw(drawn) {
    lines = drawn;
    const labels = Math.max(0, ...lines.map(({ value }) => (Array.isArray(value) ? value.length : 0)));
    label.hidden = labels < 2;
    if (select.children.length !== labels)
      select.replaceChildren(...Array.from({ length: labels }, (_, i) => h("option", { value: i }, `label ${i}`)));
    show();
  }

  function show() {
    const chosen = Number(select.value) || 0;
    const curves = lines.map(({ value }) => kind.points(Array.isArray(value) ? value[chosen] : value));
    merged = merge(curves);
    const diagonal = kind.diagonal && {
      values: merged.x.map((x) => (x === merged.x[0] || x === merged.x.at(-1) ? x : null)),
      color: "line-strong",
      width: 1,
      dash: [4, 4],
      spanGaps: true,
    };
    const series = lines.map(({ color }, i) => ({
      values: merged.at.map(([line, at]) => (line === i ? curves[i].y[at] : null)),
      color,
      width: 2,
      spanGaps: true,
      points: kind.dots,
    }));
    patch(
      legend,
      lines.length > 1 &&
        lines.map(({ name, color }) =>
          h("li", { style: { "--color": `var(--${color})` } }, h("span", { class: "swatch" }), name),
        ),
    );
    plot.draw({ x: merged.x, series: [...series, diagonal].filter(Boolean) });
    merged.curves = curves;
    slider.setAttribute("aria-valuemax", Math.max(0, merged.x.length - 1));
    slider.dataset.drawn = Number(slider.dataset.drawn ?? 0) + 1;
    read(index);
    fillTable();
  }

  function read(at) {
    index = at !== null && at < merged.at.length ? at : null;
    const [line, point] = merged.at[index] ?? [];
    const curve = merged.curves?.[line];
    reading.textContent = curve
      ? [
          lines.length > 1 && lines[line].name,
          `${kind.x} ${short(curve.x[point])}`,
          `${kind.y} ${short(curve.y[point])}`,
          curve.further[point] !== null && `${kind.further} ${short(curve.further[point])}`,
        ]
          .filter(Boolean)
          .join(", ")
      : "Point at the curve or use the arrow keys to read values.";
    slider.setAttribute("aria-valuenow", index ?? 0);
    slider.setAttribute("aria-valuetext", reading.textContent);
  }

  function move(event) {
    const to = stepped(event.key, index, merged.x.length - 1);
    if (to === null) return;
    event.preventDefault();
    plot.point(to);
    read(to);
  }

  function fillTable() {
    if (!fold.open || !merged.curves) return;
    const cell = (value) => h("td", { class: "number" }, figure(value));
    const heads = [lines.length > 1 && "run", kind.further, kind.x, kind.y].filter(Boolean);
    const rows = merged.curves.flatMap((curve, i) => {
      const every = Math.ceil(curve.x.length / MOST_ROWS);
      const points = curve.x.map((_, at) => at).filter((at) => at % every === 0 || at === curve.x.length - 1);
      return points.map((at) =>
        h(
          "tr",
          {},
          lines.length > 1 && h("th", { scope: "row" }, lines[i].name),
          cell(curve.further[at]),
          cell(curve.x[at]),
          cell(curve.y[at]),
        ),
      );
    });
    const head = heads.map((text) => h("th", { scope: "col", class: text === "run" ? null : "number" }, text));
    const table = aligned(
      h(
        "table",
        { class: "numbers" },
        h("caption", { class: "unseen" }, kind.title),
        h("thead", {}, h("tr", {}, head)),
        h("tbody", {}, rows),
      ),
    );
    fold.replaceChildren(fold.firstChild, scrollRegion(`${kind.title}, values`, table));
  }

  return { element, start, draw };
}

/** The points of several curves in one order: their x, and the curve and index of each. */
function merge(curves) {
  const at = curves.flatMap(({ x }, line) => x.map((_, i) => [line, i]));
  at.sort(([a, i], [b, j]) => curves[a].x[i] - curves[b].x[j] || a - b || i - j);
  return { at, x: at.map(([line, i]) => curves[line].x[i]) };
}
