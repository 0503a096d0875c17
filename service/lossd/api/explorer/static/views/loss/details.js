/** The curves as numbers, and the request behind them. */

import { byRows, requestsOf } from "../../curve.js";
import { h, icon, scrollRegion } from "../../dom.js";

const MOST_ROWS = 41;
const SHOWN_POINTS = 5;

/** The curves as a table in a fold: `{ element, fill(plot, results, axis) }`. */
export function numbersTable({ plots }) {
  let fillAgain = () => {};
  const element = h("details", { ontoggle: () => fillAgain() }, h("summary", {}, "Table of values"));

  function fill({ x, lines }, results, axis) {
    fillAgain = () => fill({ x, lines }, results, axis);
    if (!element.open) return;
    const every = Math.ceil(x.length / MOST_ROWS);
    const points = x.map((_, i) => i).filter((i) => i % every === 0);
    const head = (text) => h("th", { class: "number", scope: "col" }, text);
    const cell = (value) => h("td", { class: "number" }, plots.short(value));
    const heads = results.flatMap((result, i) => [head(result.label), lines[i].slope && head("gradient")]);
    const row = (i) =>
      h(
        "tr",
        {},
        h("th", { class: "number", scope: "row" }, plots.short(x[i])),
        lines.map((line) => [cell(line.loss[i]), line.slope && cell(line.slope[i])]),
      );
    const table = h(
      "table",
      { class: "numbers" },
      h("caption", { class: "unseen" }, `Loss and gradient by ${axis.label}`),
      h("thead", {}, h("tr", {}, head("x"), heads)),
      h("tbody", {}, points.map(row)),
    );
    element.replaceChildren(element.firstChild, scrollRegion("The values of the curves", table));
  }

  return { element, fill };
}

/** The first request of the loss's own curve in a fold: `{ element, fill(curve) }`. */
export function requestText({ api, announce, signal }) {
  let fillAgain = () => {};
  const element = h("details", { ontoggle: () => fillAgain() }, h("summary", {}, "Example request"));
  let latest = null;

  async function fill(curve) {
    latest = curve;
    fillAgain = () => fill(curve);
    if (!element.open) return;
    const together = byRows(curve.loss);
    try {
      const { first, count } = await requestsOf(curve, { api, signal, points: together ? SHOWN_POINTS : undefined });
      if (latest !== curve) return;
      const sentence = together
        ? `One request has all points as rows; here are ${SHOWN_POINTS} of ${curve.x.length}.`
        : `Each of the ${count} points is a request, because the samples of a request interact. The first:`;
      show(sentence, JSON.stringify(first));
    } catch (error) {
      if (!(error instanceof api.Problem)) throw error;
      element.replaceChildren(element.firstChild, h("p", { class: "small quiet" }, error.message));
    }
  }

  function show(sentence, body) {
    const url = new URL("v1/evaluate", location.href);
    const command = `curl -s ${url} -H 'Content-Type: application/json' -d '${body}'`;
    const label = h("span", {}, "Copy as curl");
    const onclick = async () => {
      await navigator.clipboard.writeText(command);
      announce("Copied");
      label.textContent = "Copied";
    };
    const region = { class: "request", tabindex: 0, role: "region", "aria-label": "The request's body" };
    element.replaceChildren(
      element.firstChild,
      h("p", { class: "small quiet" }, sentence),
      h("pre", region, h("code", {}, body)),
      h("p", { class: "row" }, h("button", { type: "button", class: "plain", onclick }, icon("copy"), label)),
    );
  }

  return { element, fill };
}
