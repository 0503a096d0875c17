/** The curves as numbers. */

import { aligned } from "../../decimals.js";
import { h, scrollRegion } from "../../dom.js";
import { place } from "./plot.js";

const MOST_ROWS = 41;

/** The curves as a table in a fold: `{ element, fill(plot, results, axis) }`. */
export function numbersTable({ plots }) {
  let fillAgain = () => {};
  const element = h("details", { ontoggle: () => fillAgain() }, h("summary", {}, "Table of values"));

  function fill({ x, lines }, results, axis) {
    fillAgain = () => fill({ x, lines }, results, axis);
    if (!element.open) return;
    const every = Math.ceil(x.length / MOST_ROWS);
    const points = x.map((_, i) => i).filter((i) => i % every === 0);
    const head = (text) => h("th", { class: "number", scope: "col" }, text);
    const cell = (value) => h("td", { class: "number" }, plots.short(value));
    const heads = results.flatMap((result, i) => [head(result.label), lines[i].slope && head("gradient")]);
    const row = (i) =>
      h(
        "tr",
        {},
        h("th", { class: "number", scope: "row" }, place(x[i])),
        lines.map((line) => [cell(line.loss[i]), line.slope && cell(line.slope[i])]),
      );
    const table = aligned(
      h(
        "table",
        { class: "numbers" },
        h("caption", { class: "unseen" }, `Loss and gradient by ${axis.label}`),
        h("thead", {}, h("tr", {}, head("x"), heads)),
        h("tbody", {}, points.map(row)),
      ),
    );
    element.replaceChildren(element.firstChild, scrollRegion("The values of the curves", table));
  }

  return { element, fill };
}
