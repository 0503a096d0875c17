/** The classes of a run with the interval of a metric, the worst first. */

import { aligned, evenly } from "../../decimals.js";
import { h, patch, scrollRegion } from "../../dom.js";
import { finest, named, percent, whole } from "../../scores.js";
import { axisOf, intervalCell, scale, whisker } from "../../whiskers.js";

const SHOWN = 30;
const FIRST = ["f1", "iou", "recall"];
const OTHERS = ["precision", "recall"];

/** The section: `{ element, show(document) }`. */
export function classes({ better }) {
  const select = h("select", { "aria-label": "Metric of the classes", onchange: () => draw() });
  const field = h("label", { class: "row metric" }, h("span", { class: "small quiet" }, "Ordered by"), select);
  const region = scrollRegion("Metrics of each class");
  const note = h("p", { class: "small quiet" });
  const all = h("button", { type: "button", class: "plain", onclick: showAll }, "Show all classes");
  const element = h(
    "section",
    { class: "card more", hidden: true },
    h("div", { class: "row spread" }, h("h2", {}, "Classes"), field),
    region,
    note,
    h("p", { class: "row" }, all),
  );
  let result = null;
  let most = SHOWN;

  function show(document) {
    result = document.result;
    const names = Object.entries(result?.metrics ?? {})
      .filter(([name, value]) => Array.isArray(value?.per_class) && better(name))
      .map(([name]) => name);
    element.hidden = !names.length;
    if (element.hidden) return;
    if (select.dataset.names !== JSON.stringify(names)) {
      select.dataset.names = JSON.stringify(names);
      select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
      select.value = FIRST.find((name) => names.includes(name)) ?? names[0];
    }
    draw();
  }

  function draw() {
    const { metrics, intervals, level } = result;
    const metric = select.value;
    const values = metrics[metric].per_class;
    const further = OTHERS.filter((name) => name !== metric && Array.isArray(metrics[name]?.per_class));
    const support = Array.isArray(metrics.support) ? metrics.support : null;
    const entries = values.map((value, i) => ({ i, value, ...named(intervals, `${metric}.per_class.${i}`) }));
    const bad = better(metric) === "lower" ? -1 : 1;
    const known = entries.filter(({ value }) => value !== null).sort((a, b) => bad * (a.value - b.value));
    const rows = [...known, ...entries.filter(({ value }) => value === null)];
    const decimals = finest(known);
    const axis = axisOf(known.flatMap(({ value, low, high }) => [value, low, high]));
    const text = evenly(values);
    const ofFurther = Object.fromEntries(further.map((name) => [name, evenly(metrics[name].per_class)]));
    const head = (label) => h("th", { scope: "col", class: "number" }, label);
    patch(
      region,
      aligned(
        h(
          "table",
          { class: "fold per-class" },
          h("caption", { class: "unseen" }, `Classes by ${metric}, the worst first`),
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              h("th", { scope: "col" }, "Class"),
              support && head("rows"),
              further.map(head),
              head(metric),
              head(`${percent(level)} interval`),
              h("td", { class: "whisker-cell" }, scale(axis)),
            ),
          ),
          h(
            "tbody",
            {},
            rows.slice(0, most).map((entry) =>
              h(
                "tr",
                { "data-key": `class-${entry.i}` },
                h("th", { scope: "row" }, `class ${entry.i}`),
                support && h("td", { class: "number rows-cell", "data-name": "rows" }, whole(support[entry.i])),
                further.map((name) =>
                  h(
                    "td",
                    { class: "number further", "data-name": name },
                    ofFurther[name](metrics[name].per_class[entry.i]),
                  ),
                ),
                h("td", { class: "number value-cell" }, entry.value === null ? "undefined" : text(entry.value)),
                intervalCell(entry, { decimals }),
                h("td", { class: "whisker-cell" }, whisker(entry, axis)),
              ),
            ),
          ),
        ),
      ),
    );
    all.parentElement.hidden = rows.length <= most;
    note.textContent =
      rows.length > most ? `The ${most} worst of ${whole(rows.length)} classes.` : "The worst class is first.";
  }

  function showAll() {
    most = Number.POSITIVE_INFINITY;
    draw();
    region.focus();
  }

  return { element, show };
}
