/** The runs of a comparison, the baseline first. */

import { h } from "../../dom.js";
import { addressOf, whole } from "../../scores.js";

/** A run's colour in the curves. */
export const colorOf = (i) => `curve-${(i % 6) + 1}`;

/** The runs as a table. */
export function entries({ runs }, { href }) {
  return h(
    "section",
    { class: "card more", "data-key": "runs" },
    h("h2", {}, "Runs"),
    h(
      "table",
      { class: "plain compared" },
      h("caption", { class: "unseen" }, "The compared runs"),
      h(
        "tbody",
        {},
        runs.map((run, i) =>
          h(
            "tr",
            {},
            h(
              "th",
              { scope: "row" },
              h("span", { class: "swatch square", style: { "--color": `var(--${colorOf(i)})` } }),
              h("a", { class: "mono name", href: href(...addressOf(run)) }, run.run),
              i === 0 && h("span", { class: "chip" }, "baseline"),
              run.provisional && h("span", { class: "chip", "data-tone": "warn" }, "open"),
            ),
            h("td", { class: "number" }, `${whole(run.rows)} rows`),
          ),
        ),
      ),
    ),
  );
}
