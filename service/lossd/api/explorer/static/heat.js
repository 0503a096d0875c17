/** Tensors as pictures: small ones as tinted tables, large ones as a canvas with a table of numbers. */

import { choice } from "./controls/choice.js";
import { slider } from "./controls/slider.js";
import { h, scrollRegion } from "./dom.js";
import { short } from "./plots.js";
import { elementCount } from "./safetensors.js";

const MOST_CELLS = { rows: 24, columns: 12 };
const MOST_PANELS = 12;
const LISTED = 32;
const TINT = 46; // percent; text on it stays readable

/** The tint of a number: one colour above 0, another below, strongest at `most`. */
function tint(value, most) {
  const part = most > 0 && Number.isFinite(value) ? Math.min(1, Math.abs(value) / most) : 0;
  return { "--color": `var(--curve-${value < 0 ? 2 : 1})`, "--part": `${(TINT * Math.sqrt(part)).toFixed(1)}%` };
}

/** A table of tinted numbers. `shade(row, column)` is from -1 to 1. */
export function heatTable(values, { label, rowNames, columnNames, corner = "", shade, format = short }) {
  return scrollRegion(
    label,
    h(
      "table",
      { class: "heat" },
      h("caption", { class: "unseen" }, label),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("td", { class: "quiet" }, corner),
          columnNames.map((name) => h("th", { scope: "col" }, name)),
        ),
      ),
      h(
        "tbody",
        {},
        values.map((row, i) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, rowNames[i]),
            row.map((value, j) => h("td", { class: "number", style: tint(shade(i, j), 1) }, format(value))),
          ),
        ),
      ),
    ),
  );
}

/** A picture of a tensor `{ shape, values }`; with `classes` the second axis counts classes. */
export function picture({ shape, values }, { label, theme, signal, classes = false }) {
  const most = values.reduce((max, value) => (Number.isFinite(value) ? Math.max(max, Math.abs(value)) : max), 0);
  const scale = h(
    "p",
    { class: "small quiet scale", "aria-hidden": "true" },
    h("span", { class: "number" }, short(-most)),
    h("span", { class: "ramp" }),
    h("span", { class: "number" }, short(most)),
  );
  if (shape.length < 2) return h("div", { class: "picture" }, bars(values, most, label));
  if (shape.length === 2) {
    const [rows, columns] = shape;
    const fits = rows <= MOST_CELLS.rows && columns <= MOST_CELLS.columns;
    return h(
      "div",
      { class: "picture" },
      fits
        ? numbered(values, shape, most, label)
        : [image(values, rows, columns, most, { label, theme, signal }), listed(values, rows, columns, label)],
      scale,
    );
  }
  // The first axis counts samples, and the last two are an image. Each class is a panel. The axes between are slices,
  // of which one is shown at a time.
  const { samples, panels, slices, height, width } = layout(shape, classes);
  const board = h("div", { class: "panels" });
  const size = height * width;
  const place = { sample: 0, slice: slices >> 1 };
  const show = () =>
    board.replaceChildren(
      ...Array.from({ length: Math.min(panels, MOST_PANELS) }, (_, i) => {
        const at = ((place.sample * panels + i) * slices + place.slice) * size;
        const part = values.slice(at, at + size);
        const name =
          [panels > 1 && `class ${i}`, slices > 1 && `slice ${place.slice}`].filter(Boolean).join(", ") || "values";
        return h(
          "figure",
          {},
          image(part, height, width, most, { label: `${label}, sample ${place.sample}, ${name}`, theme, signal }),
          h("figcaption", { class: "small quiet" }, name),
          listed(part, height, width, `${label}, ${name}`),
        );
      }),
    );
  show();
  const move = (changes) => {
    Object.assign(place, changes);
    show();
  };
  const which =
    samples > 1 &&
    choice(
      "sample",
      Array.from({ length: Math.min(samples, 8) }, (_, i) => [i, String(i)]),
      0,
      (sample) => move({ sample }),
      null,
      "Sample",
    );
  const depth =
    slices > 1 &&
    slider(
      `slice-${label}`,
      { label: `slice, of ${slices}`, min: 0, max: slices - 1, step: 1, value: place.slice, integer: true },
      (slice) => move({ slice: Math.min(slices - 1, Math.max(0, Math.round(slice))) }),
    );
  return h(
    "div",
    { class: "picture" },
    which?.element,
    depth?.element,
    board,
    panels > MOST_PANELS && h("p", { class: "small quiet" }, `The first ${MOST_PANELS} of ${panels}.`),
    scale,
  );
}

/** The meaning of the axes of a tensor with three or more. */
function layout([samples, ...inner], classes) {
  const [height, width] = inner.slice(-2);
  const between = inner.slice(0, -2);
  const panels = classes && between.length ? between[0] : 1;
  return { samples, panels, slices: elementCount(between) / panels, height, width };
}

function numbered(values, [rows, columns], most, label) {
  const table = Array.from({ length: rows }, (_, i) => values.slice(i * columns, (i + 1) * columns));
  return heatTable(table, {
    label,
    corner: "row",
    rowNames: table.map((_, i) => i),
    columnNames: Array.from({ length: columns }, (_, j) => j),
    shade: (i, j) => (most ? table[i][j] / most : 0),
  });
}

/** A number and a bar to either side of zero for each row. */
function bars(values, most, label) {
  const shown = values.slice(0, LISTED);
  return [
    scrollRegion(
      label,
      h(
        "table",
        { class: "sides" },
        h("caption", { class: "unseen" }, label),
        h(
          "tbody",
          {},
          shown.map((value, i) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, i),
              h(
                "td",
                { class: "side-bar", "aria-hidden": "true" },
                h("span", {
                  class: value < 0 ? "below" : "above",
                  style: { "--part": `${most && Number.isFinite(value) ? (50 * Math.abs(value)) / most : 0}%` },
                }),
              ),
              h("td", { class: "number" }, short(value)),
            ),
          ),
        ),
      ),
    ),
    values.length > LISTED && h("p", { class: "small quiet" }, `The first ${LISTED} of ${values.length}.`),
  ];
}

/** A canvas with a pixel for each number. */
export function image(values, rows, columns, most, { label, theme, signal }) {
  const canvas = h("canvas", {
    class: "pixels",
    width: columns,
    height: rows,
    role: "img",
    "aria-label": label,
    style: { "--shape": `${columns} / ${rows}` },
  });
  function paint() {
    const pen = canvas.getContext("2d");
    const pixels = pen.createImageData(columns, rows);
    const [card, above, below] = ["card", "curve-1", "curve-2"].map((name) => rgb(theme.color(name)));
    for (const [i, value] of values.entries()) {
      const part = most > 0 && Number.isFinite(value) ? Math.sqrt(Math.min(1, Math.abs(value) / most)) : 0;
      const full = value < 0 ? below : above;
      for (let c = 0; c < 3; c += 1) pixels.data[4 * i + c] = card[c] + part * (full[c] - card[c]);
      pixels.data[4 * i + 3] = 255;
    }
    pen.putImageData(pixels, 0, 0);
  }
  paint();
  theme.onChange(paint, signal);
  return canvas;
}

/** The first numbers of an image as a table. */
function listed(values, rows, columns, label) {
  const details = h("details", { class: "small", ontoggle: fill }, h("summary", {}, "Its numbers"));
  function fill() {
    if (!details.open || details.children.length > 1) return;
    const [high, wide] = [Math.min(rows, LISTED), Math.min(columns, LISTED)];
    details.append(
      ...[
        scrollRegion(
          `${label}, numbers`,
          h(
            "table",
            { class: "numbers" },
            h(
              "tbody",
              {},
              Array.from({ length: high }, (_, i) =>
                h(
                  "tr",
                  {},
                  h("th", { scope: "row" }, i),
                  Array.from({ length: wide }, (__, j) => h("td", { class: "number" }, short(values[i * columns + j]))),
                ),
              ),
            ),
          ),
        ),
        (high < rows || wide < columns) &&
          h("p", { class: "quiet" }, `The first ${high} of ${rows} rows and ${wide} of ${columns} columns.`),
      ].filter(Boolean),
    );
  }
  return details;
}

/** A colour of the style sheet, #rrggbb, as three numbers. */
export function rgb(color) {
  return [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
}
