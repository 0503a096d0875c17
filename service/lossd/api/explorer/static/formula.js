/** Formulas by KaTeX, which is loaded with the first formula. */

import { stylesheet } from "./dom.js";

let katex = null;

async function loaded() {
  const style = () => stylesheet(new URL("./vendor/katex/katex.min.css", import.meta.url));
  katex ??= Promise.all([import("./vendor/katex/katex.min.js"), style()]).then(() => globalThis.katex);
  return katex;
}

/** Show LaTeX in an element, with MathML for screen readers. */
export async function formula(element, latex, { display = true } = {}) {
  element.textContent = latex;
  (await loaded()).render(latex, element, { displayMode: display, throwOnError: false, strict: "ignore" });
}
