/** A confusion matrix: a tinted table, or a picture of many classes with a table of what is confused most. */

import { h, scrollRegion } from "./dom.js";
import { heatTable, image } from "./heat.js";
import { figure } from "./plots.js";

const MOST_CLASSES = 20;
const LISTED = 20;

// Several labels have a matrix each, and very many classes have counts instead; neither is one table.
export const isMatrix = (value) =>
  Array.isArray(value) &&
  value.length > 0 &&
  value.every((row) => Array.isArray(row) && row.every((count) => typeof count === "number"));

const text = (count) => (Number.isInteger(count) ? count.toLocaleString("en") : figure(count));

/** The matrix as elements; rows are true classes. `canvas` is `{ theme, signal }`. */
export function confusion(matrix, canvas) {
  const sums = matrix.map((row) => row.reduce((sum, count) => sum + count, 0));
  const share = (i, j) => ((i === j ? 1 : -1) * matrix[i][j]) / (sums[i] || 1);
  const label = "Confusion matrix: rows are true classes, columns predicted ones";
  const note = h(
    "p",
    { class: "small quiet" },
    "The tint shows the share of the row: one colour for correct predictions, the other for wrong ones.",
  );
  if (matrix.length > MOST_CLASSES) {
    const shares = matrix.flatMap((row, i) => row.map((_, j) => share(i, j)));
    return [image(shares, matrix.length, matrix.length, 1, { label, ...canvas }), note, mistakes(matrix)];
  }
  const names = matrix.map((_, i) => i);
  const table = heatTable(matrix, {
    label,
    corner: "true\u00a0↓ predicted\u00a0→",
    rowNames: names,
    columnNames: names,
    shade: share,
    format: text,
  });
  return [table, note];
}

/** The most frequent mistakes as a table. */
function mistakes(matrix) {
  const found = matrix
    .flatMap((row, i) => row.map((count, j) => [i, j, count]))
    .filter(([i, j, count]) => i !== j && count > 0)
    .sort(([, , a], [, , b]) => b - a);
  if (!found.length) return h("p", { class: "small quiet" }, "There are no mistakes.");
  const head = (name) => h("th", { scope: "col", class: "number" }, name);
  return [
    scrollRegion(
      "The most frequent mistakes",
      h(
        "table",
        { class: "numbers" },
        h("caption", { class: "unseen" }, "The most frequent mistakes"),
        h("thead", {}, h("tr", {}, ["true", "predicted", "count"].map(head))),
        h(
          "tbody",
          {},
          found
            .slice(0, LISTED)
            .map(([i, j, count]) =>
              h(
                "tr",
                {},
                h("th", { scope: "row", class: "number" }, i),
                h("td", { class: "number" }, j),
                h("td", { class: "number" }, text(count)),
              ),
            ),
        ),
      ),
    ),
    found.length > LISTED && h("p", { class: "small quiet" }, `The ${LISTED} most frequent of ${found.length}.`),
  ].filter(Boolean);
}
