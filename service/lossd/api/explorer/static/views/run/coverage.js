/** Which rows a run has counted: a bar, and the ranges that are missing. */

import { h, patch } from "../../dom.js";
import { counted, whole } from "../../scores.js";

const LISTED = 12;

/** The section: `{ element, show(document) }`. */
export function coverage() {
  const element = h("section", { class: "card more", hidden: true });

  function show({ counted: { rows }, dataset, missing = [], identity, status }) {
    const all = dataset?.rows ?? null;
    element.hidden = all === null && !missing.length;
    if (element.hidden) return;
    const end = all ?? missing.at(-1)?.[1] ?? rows;
    const whole_ = all !== null && rows === all && !missing.length;
    const sentence =
      all === null
        ? `${counted(rows, "row")} counted. The definition does not state the total.`
        : whole_
          ? `All ${counted(all, "row")} are counted once.`
          : `${whole(rows)} of ${counted(all, "row")} are counted.`;
    patch(
      element,
      h("h2", {}, "Rows"),
      h("p", {}, sentence),
      end > 0 && bar(rows, end, missing, identity),
      missing.length > 0 &&
        h(
          "p",
          { class: "small quiet number" },
          `Missing: ${missing.slice(0, LISTED).map(range).join(", ")}${missing.length > LISTED ? " and further rows" : ""}.`,
        ),
      identity === "batch" &&
        !whole_ &&
        h("p", { class: "small quiet" }, "Batches identify the rows, so the missing rows are unknown."),
      status === "open" && whole_ && h("p", { class: "small quiet" }, "The run can be sealed now."),
    );
  }

  return { element, show };
}

const range = ([first, stop]) => (first + 1 === stop ? whole(first) : `${whole(first)}–${whole(stop - 1)}`);

/** The bar. Only the first missing ranges are known; without any, the counted rows are drawn from the left. */
function bar(rows, end, missing, identity) {
  const spans = [];
  let at = 0;
  const add = (to, kind) => {
    if (to > at) spans.push([to - at, kind]);
    at = Math.max(at, to);
  };
  if (missing.length) {
    for (const [first, stop] of missing) {
      add(first, "there");
      add(Math.min(stop, end), "gap");
    }
    add(end, "there");
  } else {
    add(Math.min(rows, end), "there");
    add(end, "gap");
  }
  return h(
    "div",
    { class: "coverage", "aria-hidden": "true", "data-identity": identity },
    spans.map(([size, kind]) => h("span", { class: kind, style: { "--part": size / end } })),
  );
}
