/** The guide to a loss: what its symbols are, when to use it, when not, and the common mistake. */

import { inline } from "../../documentation.js";
import { h } from "../../dom.js";
import { formula } from "../../formula.js";

/** The symbols of the formula, with what each is. */
export function symbolList({ symbols }) {
  return h(
    "dl",
    { class: "symbols small" },
    Object.entries(symbols).map(([symbol, text]) => {
      const term = h("dt", {});
      formula(term, latex(symbol), { display: false });
      return h("div", {}, term, h("dd", {}, inline(text)));
    }),
  );
}

/** A symbol in LaTeX: words upright, and what follows the underscore below. */
function latex(symbol) {
  const [letters, below] = symbol.split("_");
  const upright = (text, most) => (text.replace("'", "").length > most ? `\\text{${text}}` : text);
  return upright(letters, 1) + (below ? `_{${upright(below, 2)}}` : "");
}

export function advice({ use, avoid, mistake }) {
  const part = (heading, text) => h("section", {}, h("h2", {}, heading), h("p", {}, inline(text)));
  return h(
    "div",
    { class: "card guide" },
    part("When to use it", use),
    part("When not to", avoid),
    part("The common mistake", mistake),
  );
}
