/** Formulas by KaTeX, which is loaded with the first formula. */

let katex = null;

async function loaded() {
  katex ??= import("./vendor/katex/katex.min.js").then(() => globalThis.katex);
  return katex;
}

/** Show LaTeX in an element, with MathML for screen readers. */
export async function formula(element, latex, { display = true } = {}) {
  element.textContent = latex;
  (await loaded()).render(latex, element, { displayMode: display, throwOnError: false, strict: "ignore" });
}
