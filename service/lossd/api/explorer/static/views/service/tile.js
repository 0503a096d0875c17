/** A figure of the service now, and its last minute as a line. */

import { h } from "../../dom.js";

/** How many readings a line shows. */
export const KEPT = 60;

export function tile(label, name, format, noted) {
  const value = h("strong", { class: "number" }, "–");
  const more = h("span", { class: "small quiet number" });
  const spark = h("div", { class: "spark" });
  return {
    name,
    element: h("article", { class: "card meter" }, h("h2", {}, label), h("p", {}, value, " ", more), spark),
    update(values, plots) {
      const known = values.filter((v) => v !== null);
      value.textContent = known.length ? format(values.at(-1) ?? known.at(-1)) : "–";
      const padded = [...Array(Math.max(0, KEPT - values.length)).fill(NaN), ...values.map((v) => v ?? NaN)];
      if (known.length > 1)
        spark.replaceChildren(
          plots.thumbnail(
            padded.map((_, i) => i),
            padded,
            { low: 0, high: 1.15 * Math.max(...known, 1e-9), air: 0.04 },
          ),
        );
    },
    note(v, quiet) {
      more.textContent = v === null ? "" : `${noted} ${format(v)}${quiet ? " since the start" : ""}`;
    },
    aside(text) {
      more.textContent = text;
    },
  };
}
