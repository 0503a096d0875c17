/** Formulas, by KaTeX, which is fetched when the first one is to be shown. */

let katex = null;

async function loaded() {
  katex ??= import("./vendor/katex/katex.min.js").then(() => globalThis.katex);
  return katex;
}

/** Show LaTeX in an element: for eyes as a formula, for screen readers as MathML. */
export async function formula(element, latex, { display = true } = {}) {
  element.textContent = latex;
  (await loaded()).render(latex, element, { displayMode: display, throwOnError: false, strict: "ignore" });
}
