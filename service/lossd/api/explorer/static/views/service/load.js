/** A load test: some hundred requests over this browser's connections, with their progress. */

import { h, icon } from "../../dom.js";
import { tensor } from "../../safetensors.js";

const WORK = { requests: 600, atOnce: 6, rows: 64, classes: 10 };

/** The row with the button, the progress and the result. */
export function loadTest({ api, signal }) {
  const progress = h("progress", { max: WORK.requests, value: 0, "aria-label": "Requests answered", hidden: true });
  const result = h("span", { class: "small quiet number", role: "status" });
  const start = h("button", { type: "button", onclick: work }, icon("play"), "Run a load test");
  return h("div", { class: "row" }, start, progress, result);

  async function work() {
    start.disabled = true;
    progress.hidden = false;
    progress.value = 0;
    result.textContent = "";
    const begin = performance.now();
    let [sent, failed] = [0, 0];
    const one = async () => {
      while (sent < WORK.requests && !signal.aborted) {
        sent += 1;
        try {
          await api.evaluateTensors(sample(), signal);
        } catch (error) {
          if (error.name === "AbortError") return;
          failed += 1;
        }
        progress.value += 1;
      }
    };
    await Promise.all(Array.from({ length: WORK.atOnce }, one));
    const took = (performance.now() - begin) / 1000;
    result.textContent = `${WORK.requests} focal losses of ${WORK.rows} × ${WORK.classes}, with gradients, in ${took.toFixed(1)} s over this browser's ${WORK.atOnce} connections${failed ? `; ${failed} failed` : ""}`;
    progress.hidden = true;
    start.disabled = false;
  }
}

/** A request of the size of a small training step: random scores and classes. */
function sample() {
  const { rows, classes } = WORK;
  const scores = Float32Array.from({ length: rows * classes }, () => 4 * Math.random() - 2);
  const target = Array.from({ length: rows }, () => Math.floor(Math.random() * classes));
  return {
    loss: { name: "focal", gamma: 2 },
    outputs: ["loss", "gradient"],
    inputs: {
      prediction: { dtype: "F32", shape: [rows, classes], data: scores },
      target: tensor(target, [rows], "I64"),
    },
  };
}
