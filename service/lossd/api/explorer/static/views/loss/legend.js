/** The legend of the curves, and the sentence about their gradients. */

import { queryOf } from "../../curve.js";
import { h, icon } from "../../dom.js";
import { swatch } from "../../plots.js";
import { isComparable } from "./plot.js";

/** The entries of the legend; `remove(i)` removes the i-th of the other curves. */
export function legendEntries(results, { href, remove }) {
  return results.map((result, i) =>
    h(
      "li",
      {},
      swatch(result),
      i
        ? h("a", { href: href(`/losses/${result.loss.name}`, queryOf(result.parameters)) }, result.label)
        : h("strong", {}, result.label),
      i > 0 &&
        h(
          "button",
          { type: "button", class: "tiny", "aria-label": `Remove ${result.label}`, onclick: () => remove(i - 1) },
          icon("close"),
        ),
    ),
  );
}

/** What the gradients are with respect to, and which curves have another gradient. */
export function gradientSentence([first, ...others]) {
  if (!first.subject) return "";
  const apart = others
    .filter((result) => result.slope && !isComparable(result, first))
    .map(({ label, subject }) => ` The gradient of ${label} is with respect to ${subject} and is not drawn.`);
  return `The gradient is with respect to ${first.subject}.${apart.join("")}`;
}
