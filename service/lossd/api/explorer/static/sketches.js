/** Sketches of a point of an axis: two boxes, two vectors, an image. Decoration: the axis has a label. */

import { svg } from "./dom.js";

const CELLS = 20;

const frame = (box, ...parts) => svg("svg", { class: "sketch", viewBox: box, "aria-hidden": "true" }, parts);
const dot = (x, y, kind) => svg("circle", { cx: x, cy: y, r: 0.11, class: kind });
const line = (x1, y1, x2, y2, kind = "") => svg("line", { x1, y1, x2, y2, class: kind });
const square = (x, y, side, kind) =>
  svg("rect", { x: x - side / 2, y: y - side / 2, width: side, height: side, class: kind });

const SKETCHES = {
  boxes: (x, { size, below }) => {
    const up = Math.max(1, size) / 2 + 0.1;
    return frame(`-3.4 ${-up} 6.8 ${2 * up + below}`, square(0, 0, 1, "target"), square(x, below, size, "prediction"));
  },
  iou: (x) => frame("-4 -0.8 8 1.6", square(0, 0, 1, "target"), square((1 - x) / (1 + x), 0, 1, "prediction")),
  pair: (x) => frame("-0.5 -0.5 4 1", line(0, 0, x, 0), dot(0, 0, "target"), dot(x, 0, "prediction")),
  triplet: (x, { positive }) =>
    frame(
      `-0.5 ${-positive - 0.4} 4 ${positive + 0.8}`,
      line(0, 0, x, 0),
      line(0, 0, 0, -positive, "good"),
      dot(0, 0, "target"),
      dot(0, -positive, "good"),
      dot(x, 0, "prediction"),
    ),
  cosine: (x) =>
    frame(
      "-1.2 -1.2 2.4 1.4",
      line(0, 0, 1, 0, "target"),
      line(0, 0, x, -Math.sqrt(1 - x * x), "prediction"),
      dot(0, 0, "target"),
    ),
  image: (p, { share }) =>
    frame(
      `-0.2 -0.2 ${CELLS + 0.4} 2.4`,
      Array.from({ length: CELLS }, (_, i) =>
        svg("rect", { x: i, y: 0, width: 1, height: 2, class: "pixel", "fill-opacity": i < share * CELLS ? p : 1 - p }),
      ),
      svg("rect", { x: 0, y: 0, width: Math.ceil(share * CELLS), height: 2, class: "target" }),
    ),
};

/** The sketch of an axis at x; null for an axis without one. */
export const sketch = (axis, x, given) => SKETCHES[axis.picture]?.(x, given) ?? null;
