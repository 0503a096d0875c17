/** The choice of another run on the same data set to compare with. */

import { h } from "../../dom.js";
import { comparisonQuery, datasetOf } from "../../scores.js";

const MOST = 200;

/** The field; it is shown if there is another run. */
export function others({ api, signal, owner, parameters: { name }, navigate }) {
  const select = h("select", { id: "compare-with", onchange: compare }, h("option", { value: "" }, "Choose a run"));
  const element = h(
    "div",
    { class: "row", hidden: true },
    h("label", { class: "small quiet", for: "compare-with" }, "Compare with"),
    h("div", { class: "narrow" }, select),
  );
  let found = [];
  fill().catch((error) => {
    if (error.name !== "AbortError" && !(error instanceof api.Problem)) throw error;
  });

  async function fill() {
    const listed = await api.json(`/v1/runs?limit=${MOST}`, signal);
    const self = listed.runs.find((run) => run.run === name && (owner === null || run.owner === owner));
    found = listed.runs.filter((run) => run !== self && (!self || datasetOf(run) === datasetOf(self)));
    select.append(...found.map((run, i) => h("option", { value: i }, run.run)));
    element.hidden = !found.length;
  }

  function compare() {
    if (select.value === "") return;
    navigate("/compare", comparisonQuery([found[Number(select.value)], { run: name, owner: owner ?? "" }]));
  }

  return element;
}
