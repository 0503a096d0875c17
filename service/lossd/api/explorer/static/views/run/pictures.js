/** The confusion matrix and the curves of a run, as far as it can answer them. */

import { confusion, isMatrix } from "../../confusion.js";
import { DIAGRAMS, diagram, isDrawable } from "../../diagrams.js";
import { h } from "../../dom.js";
import { saveButton } from "../../save.js";
import { pathOf, pictureOf } from "../../scores.js";

const MATRIX = "confusion_matrix";

/** The section: `{ element, show(document) }`. */
export function pictures(context) {
  const { api, owner, signal, theme } = context;
  const element = h("div", { class: "pictures", hidden: true });
  const drawn = new Map();
  const matrix = h("section", { class: "card more", hidden: true });
  let shown = "";
  let run = null;
  element.append(matrix);
  const save = (kind) => saveButton(() => pictureOf(run, owner, kind), context);

  async function show(document) {
    run = document.run;
    const found = await picturesOf(document, { api, owner, signal });
    drawMatrix(found[MATRIX]);
    for (const metric of Object.keys(DIAGRAMS)) {
      if (!isDrawable(found[metric])) continue;
      element.hidden = false;
      if (!drawn.has(metric)) {
        const card = diagram(metric, context, save(DIAGRAMS[metric].picture));
        drawn.set(metric, card);
        element.append(card.element);
        await card.start();
      }
      drawn.get(metric).draw([{ name: document.run, color: "curve-1", value: found[metric] }]);
    }
  }

  function drawMatrix(found) {
    matrix.hidden = !isMatrix(found);
    if (matrix.hidden || shown === JSON.stringify(found)) return;
    shown = JSON.stringify(found);
    element.hidden = false;
    const scrolled = matrix.querySelector(".scroll")?.scrollLeft ?? 0;
    const head = h("div", { class: "row spread" }, h("h2", {}, "Confusion matrix"), save("confusion"));
    matrix.replaceChildren(head, ...[confusion(found, { theme, signal })].flat(2));
    matrix.querySelector(".scroll").scrollLeft = scrolled;
  }

  return { element, show };
}

/** The metrics of a run that can be drawn, by name. */
export async function picturesOf({ run, result }, { api, owner, signal }) {
  if (!result) return {};
  const names = [MATRIX, ...Object.keys(DIAGRAMS)];
  const missing = names.filter((name) => !(name in result.metrics) && result.readable?.includes(name));
  if (!missing.length) return result.metrics;
  try {
    const answer = await api.json(pathOf(run, owner, { metrics: missing.join(","), slices: "false" }), signal);
    return { ...result.metrics, ...answer.result?.metrics };
  } catch (error) {
    if (!(error instanceof api.Problem)) throw error;
    return result.metrics; // the numbers stand without their curves
  }
}
