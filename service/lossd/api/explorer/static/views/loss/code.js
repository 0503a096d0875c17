/** The smallest request with the chosen parameters, as code, and a link that opens it in the view Try it. */

import { codePanel } from "../../code.js";
import { h, icon } from "../../dom.js";
import { fewPoints, textOf } from "../../examples.js";
import { initial, toQuery } from "../try/state.js";

const POINTS = 3;
const COMPUTED = ["loss", "gradient"];

/** The code: `{ element, show(curve) }`; `curve` is the loss's own, as it is drawn. */
export function requestCode({ api, href, ...context }) {
  const link = h("a", { class: "button plain" }, icon("play"), "Open in Try it");
  const panel = codePanel(link);
  let latest = null;

  async function show(curve) {
    latest = curve;
    try {
      const { loss, inputs } = await fewPoints(curve, { api, ...context }, POINTS);
      if (latest !== curve) return;
      panel.show({ loss, inputs, outputs: COMPUTED }, "json", api.keyIsSet());
      const { name, ...parameters } = loss;
      const texts = Object.fromEntries(Object.entries(inputs).map(([input, value]) => [input, textOf(value)]));
      link.href = href("/try", toQuery({ ...initial(), loss: name, parameters, texts }));
    } catch (error) {
      if (!(error instanceof api.Problem) && error.name !== "AbortError") throw error; // the plot says what is wrong
    }
  }

  return { element: panel.element, show };
}
