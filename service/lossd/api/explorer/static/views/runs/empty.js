/** What the list of runs shows without a run. */

import { h, icon } from "../../dom.js";

const DEFINITION =
  '{"task": "binary", "metrics": ["default", "auroc"], "identity": "position", "dataset": {"name": "example", "rows": 4}}';
const BATCH = '{"first": 0, "inputs": {"prediction": [2.5, -1.0, 0.3, -0.2], "target": [1, 0, 0, 1]}}';

/** The three commands that make a run. */
export function noRuns({ announce, api }) {
  const runs = new URL("v1/runs/first", location.href);
  const key = api.keyIsSet() ? ` -H "X-API-Key: $LOSSD_API_KEY"` : "";
  const json = "-H 'Content-Type: application/json'";
  const text = [
    `curl -sf -X PUT ${runs}${key} ${json} \\\n  -d '${DEFINITION}'`,
    `curl -sf -X PUT ${runs}/batches/00000${key} ${json} \\\n  -d '${BATCH}'`,
    `curl -sf -X POST ${runs}/seal${key}`,
  ].join("\n");
  const label = h("span", {}, "Copy the commands");
  const onclick = async () => {
    await navigator.clipboard.writeText(text);
    announce("Copied");
    label.textContent = "Copied";
  };
  return h(
    "section",
    { class: "card more", "data-key": "empty" },
    h("h2", {}, "No run yet"),
    h("p", {}, "These commands define a run, count a batch of rows, and seal the run. The run then appears here."),
    h(
      "pre",
      { class: "request whole", tabindex: 0, role: "region", "aria-label": "Commands that make a run" },
      h("code", {}, text),
    ),
    h("p", { class: "row" }, h("button", { type: "button", class: "plain", onclick }, icon("copy"), label)),
    h(
      "p",
      { class: "quiet" },
      "For the files of a folder, ",
      h(
        "code",
        {},
        `lossd score DIR --task multiclass --run NAME --dataset NAME --seal --url ${new URL(".", location.href)}`,
      ),
      " does the same.",
    ),
  );
}

/** Why a service has no runs at all. */
export function runsAreOff(problem) {
  return h(
    "section",
    { class: "title" },
    h("h1", {}, "Runs"),
    h(
      "div",
      { class: "card more" },
      h("h2", {}, "This service keeps no runs"),
      h("p", {}, `The service says: ${problem.message}.`),
      h(
        "p",
        { class: "quiet" },
        "Start the service without ",
        h("code", {}, "LOSSD_RUNS=off"),
        ". It then keeps runs in a file of its user.",
      ),
    ),
  );
}
