/** The box that adds another loss to the plot, and the buttons beside it. */

import { h, icon } from "../../dom.js";
import { axisOf } from "./address.js";

const MOST_CURVES = 8;

/** The box: `{ element, fill(), focus() }`; `add(curve)` adds a curve, `reset()` restores the defaults. */
export function comparison(loss, losses, state, { add, reset }) {
  const select = h("select", {
    "aria-label": "Compare with",
    onchange: () => {
      add({ name: select.value, parameters: {} });
      select.value = "";
    },
  });
  const pinOwn = () => add({ name: loss.name, parameters: { ...state.parameters } });
  const pin = h("button", { type: "button", class: "plain", onclick: pinOwn }, icon("plus"), "Pin this curve");
  const back = h("button", { type: "button", class: "plain", onclick: reset }, icon("reset"), "Reset");
  const element = h(
    "div",
    { class: "field" },
    h("span", { class: "field-title" }, "Compare"),
    select,
    h("div", { class: "row tight" }, pin, back),
  );

  function fill() {
    const full = state.others.length >= MOST_CURVES - 1;
    const isDrawn = (entry) =>
      entry === loss ||
      state.others.some(({ name, parameters }) => name === entry.name && !Object.keys(parameters).length);
    const fitting = losses.filter((entry) => isDrawable(entry) && !isDrawn(entry) && sameKind(entry, loss));
    const hint = full ? `${MOST_CURVES} curves at most: remove one first` : "with another loss …";
    select.replaceChildren(h("option", { value: "" }, hint), ...fitting.map((entry) => h("option", {}, entry.name)));
    select.disabled = full;
    pin.disabled = full;
  }

  /** Whether a loss has the axis, and needs no parameters along it. */
  function isDrawable(entry) {
    const axis = axisOf(entry, state.axis.name);
    return entry.available && axis && !Object.keys(axis.start).length;
  }

  return { element, fill, focus: () => select.focus() };
}

/** Whether two losses may share a plot. Axes of one name can differ: an "overlap" of boxes is not one of images. */
function sameKind(a, b) {
  const labels = (loss) => loss.axes.map((axis) => axis.label.split(":")[0]);
  return a.task === b.task || labels(a).some((label) => labels(b).includes(label));
}
