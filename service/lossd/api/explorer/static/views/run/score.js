/** The numbers of a run with their intervals. */

import { aligned, evenly } from "../../decimals.js";
import { h, patch, scrollRegion, warningList } from "../../dom.js";
import { figure } from "../../plots.js";
import { finest, isCount, named, numbersOf, percent } from "../../scores.js";
import { axisOf, intervalCell, scale, whisker } from "../../whiskers.js";

const SECOND = /\.(micro|weighted)$/;

/** The section: `{ element, show(document) }`. */
export function score({ better }) {
  const element = h("section", { class: "card more", hidden: true });
  const main = scrollRegion("Numbers of the run");
  const rest = scrollRegion("Other averages");
  const fold = h("details", {}, h("summary", {}, "Micro and weighted averages"), rest);

  function show({ result }) {
    element.hidden = !result;
    if (!result) return;
    const numbers = Object.entries(numbersOf(result));
    const figures = numbers.filter(([name]) => !isCount(name));
    const first = figures.filter(([name]) => !SECOND.test(name));
    const second = figures.filter(([name]) => SECOND.test(name));
    const counts = numbers.filter(([name]) => isCount(name));
    patch(main, table(first, result));
    patch(rest, table(second, result));
    patch(
      element,
      h("h2", {}, "Score"),
      warningList(result.warnings),
      first.length > 0 && main,
      second.length > 0 && fold,
      counts.length > 0 &&
        h(
          "dl",
          { class: "facts-list" },
          counts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", { class: "number" }, figure(value)))),
        ),
      notes(result).map((text) => h("p", { class: "small quiet" }, text)),
    );
  }

  function table(figures, { intervals, level }) {
    const known = figures.map(([name, value]) => ({ name, value, ...named(intervals, name) }));
    // Scores from 0 to 1 share an axis; other numbers have units of their own.
    const shares = known.filter(
      ({ name, value, low, high }) =>
        better(name) === "higher" && [value, low ?? 0, high ?? 0].every((v) => v >= 0 && v <= 1),
    );
    const axis = axisOf(shares.flatMap(({ value, low, high }) => [value, low, high]));
    const share = evenly(shares.map(({ value }) => value));
    const text = (entry) => (shares.includes(entry) ? share : figure)(entry.value);
    const decimals = finest(shares);
    const drawn = shares.length > 0;
    return aligned(
      h(
        "table",
        { class: "fold scores" },
        h("caption", { class: "unseen" }, "Metrics, their values and intervals"),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, "Metric"),
            h("th", { scope: "col", class: "number" }, "value"),
            h("th", { scope: "col", class: "number" }, `${percent(level)} interval`),
            drawn && h("td", { class: "whisker-cell" }, scale(axis)),
          ),
        ),
        h(
          "tbody",
          {},
          known.map((entry) =>
            h(
              "tr",
              { "data-key": entry.name },
              h("th", { scope: "row" }, entry.name),
              h(
                "td",
                { class: "number value-cell", title: entry.value === null ? "undefined: 0/0" : null },
                entry.value === null ? "undefined" : text(entry),
              ),
              intervalCell(entry, { decimals: shares.includes(entry) ? decimals : null }),
              drawn && h("td", { class: "whisker-cell" }, shares.includes(entry) ? whisker(entry, axis) : ""),
            ),
          ),
        ),
      ),
    );
  }

  return { element, show };
}

function notes({ groups, intervals, bounds, level, metrics }) {
  const found = [];
  if (!groups)
    found.push(
      "There are no intervals. The definition sets groups to 0, or an earlier version of lossd created the run.",
    );
  else if (Object.keys(intervals ?? {}).length)
    found.push(
      `An interval of ${percent(level)} is computed from ${groups} groups of rows. A metric has no interval if it is not a mean over rows, is undefined in a group, or has too few rows.`,
    );
  for (const [name, { within }] of Object.entries(bounds ?? {}))
    found.push(`${name} is within ${figure(within)} of the exact value.`);
  const undefined_ = Object.entries(metrics?.undefined ?? {}).map(([name, classes]) =>
    classes.length ? `${name} of ${classes.slice(0, 12).join(", ")}${classes.length > 12 ? " …" : ""}` : name,
  );
  if (undefined_.length) found.push(`Undefined, 0/0: ${undefined_.join("; ")}.`);
  return found;
}
