/** The runs that are chosen for a comparison, and the button that compares them. */

import { h } from "../../dom.js";
import { comparisonQuery } from "../../scores.js";
import { keyOf } from "./clusters.js";

const MOST = 32;

export class Selection {
  constructor({ navigate }) {
    this.chosen = new Map();
    this.text = h("span", { class: "small quiet", role: "status" });
    this.button = h("button", { type: "button", disabled: true, onclick: () => this.compare(navigate) }, "Compare");
    this.element = h("div", { class: "row selection", hidden: true }, this.button, this.text);
    this.tell();
  }

  /** A box that chooses a run. */
  box(run) {
    const onchange = ({ target }) => {
      const { owner, run: name } = target.dataset;
      const key = keyOf({ owner, run: name });
      if (target.checked) this.chosen.set(key, { owner, run: name });
      else this.chosen.delete(key);
      this.tell();
    };
    return h("input", {
      type: "checkbox",
      "aria-label": `Choose ${run.run}`,
      checked: this.chosen.has(keyOf(run)),
      "data-owner": run.owner,
      "data-run": run.run,
      onchange,
    });
  }

  tell() {
    const { size } = this.chosen;
    this.button.disabled = size < 2 || size > MOST;
    const names = [...this.chosen.values()].map(({ run }) => run);
    this.text.textContent =
      size === 0
        ? "Choose two runs to compare. The first one is the baseline."
        : size === 1
          ? `${names[0]} is the baseline. Choose another run.`
          : size > MOST
            ? `Choose at most ${MOST} runs.`
            : `${names.slice(1, 4).join(", ")}${size > 4 ? ` and ${size - 4} more` : ""} against ${names[0]}`;
  }

  compare(navigate) {
    navigate("/compare", comparisonQuery([...this.chosen.values()]));
  }
}
