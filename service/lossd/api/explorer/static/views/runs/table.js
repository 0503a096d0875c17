/** Runs that are ranked by one metric, with whiskers on one axis. */

import { aligned, evenly } from "../../decimals.js";
import { h } from "../../dom.js";
import { addressOf, finest, named, subjectOf, whole } from "../../scores.js";
import { axisOf, intervalCell, scale, whisker } from "../../whiskers.js";
import { sentence } from "../../words.js";
import { keyOf } from "./clusters.js";

const WORDS = { a: "worse", b: "better", undecided: "no clear difference from the best" };

/**
 * A table of runs.
 *
 * @param part `{ runs, verdicts, reason }`, the best run first.
 * @param metric The name of the number; null if the runs have none.
 */
export function ranked({ runs, verdicts = new Map(), reason }, metric, { href, selection }) {
  const value = (run) => (metric ? (named(run.values, metric) ?? null) : null);
  const ends = (run) => (metric ? (named(run.intervals, metric) ?? []) : []);
  const axis = axisOf(runs.flatMap((run) => [value(run), ...ends(run)]));
  const text = evenly(runs.map(value));
  const decimals = finest(runs.map(ends).map(([low, high]) => ({ low, high })));
  const subjects = new Set(runs.map(subjectOf));
  const shown = metric && runs.some((run) => value(run) !== null);

  function row(run, i) {
    const [low, high] = ends(run);
    const verdict = verdicts.get(keyOf(run));
    const best = i === 0 && verdicts.size > 0;
    const words = best ? "best" : WORDS[verdict];
    const tone = best || verdict === "undecided" ? "good" : "quiet";
    return h(
      "tr",
      { "data-key": keyOf(run) },
      h("td", { class: "tick-cell" }, selection.box(run)),
      h(
        "th",
        { scope: "row" },
        h("a", { class: "mono name", href: href(...addressOf(run)) }, run.run),
        run.status === "open" && h("span", { class: "chip" }, "open"),
        subjects.size > 1 && h("span", { class: "chip" }, subjectOf(run)),
        run.owner && run.public && h("span", { class: "chip" }, `by ${run.owner}`),
      ),
      h("td", { class: "number rows-cell", "data-name": "rows" }, rowsOf(run)),
      shown && [
        h("td", { class: "number value-cell" }, text(value(run))),
        intervalCell({ low, high }, { decimals }),
        h("td", { class: "whisker-cell" }, whisker({ value: value(run), low, high }, axis, { tone })),
        h(
          "td",
          { class: "verdict-cell" },
          words && h("span", { class: tone === "good" ? "chip" : "small quiet", "data-tone": tone }, words),
        ),
      ],
    );
  }

  const head = (label, kind) => h("th", { scope: "col", class: kind }, label);
  return h(
    "div",
    { class: "card more ranking", "data-key": reason ?? "first" },
    reason && h("p", { class: "small apart" }, h("strong", {}, "Ranked separately: "), sentence(reason)),
    aligned(
      h(
        "table",
        { class: "fold ranked" },
        h("caption", { class: "unseen" }, metric ? `Runs by ${metric}` : "Runs"),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("td", {}),
            head("Run"),
            head("rows", "number"),
            shown && [
              head(metric, "number"),
              head("95 % interval", "number"),
              h("td", { class: "whisker-cell" }, scale(axis)),
              h("td", {}),
            ],
          ),
        ),
        h("tbody", {}, runs.map(row)),
      ),
    ),
  );
}

function rowsOf({ counted, dataset }) {
  const total = dataset?.rows;
  return total === undefined || total === null || total === counted.rows
    ? whole(counted.rows)
    : `${whole(counted.rows)} of ${whole(total)}`;
}
