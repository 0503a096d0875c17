/** The slices of a run as whiskers, the worst first. */

import { aligned, evenly } from "../../decimals.js";
import { h, patch } from "../../dom.js";
import { saveButton } from "../../save.js";
import { finest, firstOf, named, numbersOf, percent, pictureOf, sliceName, whole } from "../../scores.js";
import { axisOf, intervalCell, scale, whisker } from "../../whiskers.js";

/** The section: `{ element, show(document) }`. */
export function slices({ better, ...context }) {
  const select = h("select", { "aria-label": "Metric of the slices", onchange: () => draw() });
  const field = h("label", { class: "row metric" }, h("span", { class: "small quiet" }, "Ordered by"), select);
  const save = saveButton(() => pictureOf(run, context.owner, "slices", { metric: select.value }), context);
  const body = h("div", { class: "more" });
  const element = h(
    "section",
    { class: "card more", hidden: true },
    h("div", { class: "row spread" }, h("h2", {}, "Slices"), h("div", { class: "row" }, field, save)),
    body,
  );
  let result = null;
  let run = null;

  function show(document) {
    ({ result, run } = document);
    element.hidden = !result?.slices?.length;
    if (element.hidden) return;
    const names = Object.keys(numbersOf(result)).filter((name) => better(name));
    if (select.dataset.names !== JSON.stringify(names)) {
      select.dataset.names = JSON.stringify(names);
      const before = select.value;
      select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
      select.value = names.includes(before) ? before : (firstOf(names) ?? "");
    }
    field.hidden = !names.length;
    draw();
  }

  function draw() {
    const metric = select.value;
    const whole_ = named(numbersOf(result), metric) ?? null;
    const entries = result.slices.map(({ slice, counted, intervals, warnings, ...score }) => ({
      name: sliceName(slice),
      rows: counted.rows,
      value: named(numbersOf(score), metric) ?? null,
      warnings: warnings ?? [],
      ...named(intervals, metric),
    }));
    const bad = better(metric) === "lower" ? -1 : 1;
    const known = entries.filter(({ value }) => value !== null).sort((a, b) => bad * (a.value - b.value));
    const unknown = entries.filter(({ value }) => value === null);
    const text = evenly([whole_, ...entries.map(({ value }) => value)]);
    const decimals = finest(known);
    const axis = axisOf([whole_, ...known.flatMap(({ value, low, high }) => [value, low, high])]);
    patch(
      body,
      summary(metric, text),
      aligned(
        h(
          "table",
          { class: "fold slices" },
          h("caption", { class: "unseen" }, `Slices by ${metric}, the worst first`),
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              h("th", { scope: "col" }, "Slice"),
              h("th", { scope: "col", class: "number" }, "rows"),
              h("th", { scope: "col", class: "number" }, metric),
              h("th", { scope: "col", class: "number" }, `${percent(result.level)} interval`),
              h("td", { class: "whisker-cell" }, scale(axis)),
            ),
          ),
          h(
            "tbody",
            {},
            [...known, ...unknown].map((entry) =>
              h(
                "tr",
                { "data-key": entry.name },
                h(
                  "th",
                  { scope: "row" },
                  entry.name,
                  // A slice whose classes have few rows has a warning too, but the number may have an interval.
                  (Number.isFinite(entry.low) ? [] : entry.warnings).map(({ code, detail }) =>
                    h("span", { class: "chip", title: detail, "data-tone": "warn" }, code.replaceAll("_", " ")),
                  ),
                ),
                h("td", { class: "number rows-cell", "data-name": "rows" }, whole(entry.rows)),
                h("td", { class: "number value-cell" }, entry.value === null ? "undefined" : text(entry.value)),
                intervalCell(entry, { decimals }),
                h("td", { class: "whisker-cell" }, whisker(entry, axis, { line: whole_ })),
              ),
            ),
          ),
        ),
      ),
      h("p", { class: "small quiet" }, `The line marks the value of all rows, ${text(whole_)}.`),
    );
  }

  function summary(metric, text) {
    const worst = named(result.worst, metric);
    const gap = named(result.gap, metric);
    if (!worst) return null;
    return h(
      "p",
      {},
      "The worst slice is ",
      h("strong", {}, sliceName(worst.slice)),
      ` with ${text(worst.value)}`,
      Number.isFinite(gap) && `; the best is ${text(gap)} better`,
      ".",
    );
  }

  return { element, show };
}
