/** The controls of the landscape: model and points, step size, losses and their parameters. */

import { choice } from "../../controls/choice.js";
import { slider } from "../../controls/slider.js";
import { field, RARE, settable } from "../../controls.js";
import { h, icon } from "../../dom.js";
import { fitting, MODELS } from "../../linear.js";
import { curveName } from "../../words.js";
import { MOST } from "./state.js";

/** The choice of a model and of its points: `{ element, build() }`. */
export function modelChoice(state, { setModel, setPreset }) {
  const element = h("div", { class: "row" });

  function build() {
    const models = Object.entries(MODELS).map(([name, { title }]) => [name, title]);
    const presets = Object.keys(MODELS[state.model].presets).map((name) => [name, name]);
    const parts = [
      choice("model", models, state.model, setModel, null, "Model").group,
      choice("preset", presets, state.preset, setPreset, null, "Points").group,
      ...(state.model === "direction" ? classOfNewPoints() : []),
    ];
    const focused = document.activeElement?.name;
    element.replaceChildren(...parts);
    if (focused) element.querySelector(`[name="${focused}"]:checked`)?.focus();
  }

  function classOfNewPoints() {
    const classes = [
      [1, "● class 1"],
      [0, "□ class 0"],
    ];
    const set = (label) => {
      state.label = label;
    };
    const options = choice("label", classes, state.label, set, null, "Class of new points");
    return [h("span", { class: "small quiet" }, "New points"), options.group];
  }

  return { element, build };
}

/** The sliders of gradient descent: `{ element, build() }`. */
export function descentSliders(state, changed) {
  const element = h("div", { class: "fields" });

  function build() {
    const rate = { label: "step size", min: 0.01, max: 2, step: 0.01, value: state.rate };
    const steps = { label: "steps", min: 1, max: MOST.steps, step: 1, value: state.steps, integer: true };
    const setRate = (value) => {
      state.rate = value;
      changed();
    };
    const setSteps = (value) => {
      state.steps = Math.round(Math.min(MOST.steps, Math.max(1, value)));
      changed();
    };
    element.replaceChildren(slider("rate", rate, setRate).element, slider("steps", steps, setSteps).element);
  }

  return { element, build };
}

/** The losses with the one whose surface is shown: `{ legend, add, build() }`. */
export function lossList(state, losses, colorOf, { show, rebuild }) {
  const legend = h("ul", { class: "legend paths" });
  const add = h("select", {
    "aria-label": "Add a loss",
    onchange: () => {
      state.losses.push({ name: add.value, parameters: {} });
      state.shown = state.losses.length - 1;
      rebuild();
    },
  });

  function build() {
    legend.replaceChildren(...state.losses.map(entry));
    const names = fitting(MODELS[state.model], losses).map(({ name }) => h("option", {}, name));
    add.replaceChildren(h("option", { value: "" }, "Add a loss …"), ...names);
    add.disabled = state.losses.length >= MOST.losses;
  }

  function entry({ name, parameters }, i) {
    const label = curveName(name, parameters);
    const onclick = () => {
      state.losses.splice(i, 1);
      state.shown = Math.min(state.shown, state.losses.length - 1);
      rebuild();
    };
    const remove = h(
      "button",
      { type: "button", class: "tiny", "aria-label": `Remove ${label}`, onclick },
      icon("close"),
    );
    const onchange = () => show(i);
    return h(
      "li",
      { style: { "--color": `var(--${colorOf(i)})` } },
      h(
        "label",
        { class: "none-box" },
        h("input", { type: "radio", name: "shown", checked: i === state.shown, onchange }),
        h("span", { class: "swatch" }),
        h("span", { class: "mono" }, label),
      ),
      state.losses.length > 1 && remove,
    );
  }

  return { legend, add, build };
}

/** The parameters of the loss whose surface is shown: `{ element, build() }`. */
export function lossParameters(state, losses, changed) {
  const element = h("div", { class: "fields" });

  function build() {
    const { name, parameters } = state.losses[state.shown];
    const loss = losses.find((entry) => entry.name === name);
    const fields = settable(loss)
      .filter(([parameter]) => !RARE.has(parameter))
      .map(([parameter, schema]) =>
        field(loss, parameter, schema, parameters[parameter], (value) => {
          if (value === undefined) delete parameters[parameter];
          else parameters[parameter] = value;
          changed();
        }),
      )
      .filter(({ kind }) => kind !== "text");
    const sentence = `The surface shows ${name}${fields.length ? " with these parameters:" : ". This loss has no parameters."}`;
    element.replaceChildren(h("p", { class: "small quiet" }, sentence), ...fields.map((entry) => entry.element));
  }

  return { element, build };
}
