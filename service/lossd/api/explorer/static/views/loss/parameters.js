/** The fields of a loss's parameters, and the sliders of its axis's further numbers. */

import { choice } from "../../controls/choice.js";
import { slider } from "../../controls/slider.js";
import { field, RARE, settable } from "../../controls.js";
import { h } from "../../dom.js";

/** The fields: `{ element, build(), mark(faults) }`, where `faults` maps parameters to errors. */
export function parameterFields(loss, state, changed) {
  const element = h("div", { class: "fields" });
  let marks = new Map();

  function build() {
    const { start, sets } = state.axis;
    const shown = settable(loss, sets);
    const fields = shown.map(([name, schema]) =>
      field(loss, name, schema, state.parameters[name] ?? start[name], (value) => {
        if (value === undefined) delete state.parameters[name];
        else state.parameters[name] = value;
        changed();
      }),
    );
    const isRare = ({ kind }, i) => RARE.has(shown[i][0]) || (kind === "text" && !(shown[i][0] in start));
    const rare = fields.filter(isRare);
    const common = fields.filter((entry) => !rare.includes(entry));
    marks = new Map(shown.map(([name], i) => [name, fields[i].mark]));
    element.replaceChildren(...common.map((entry) => entry.element));
    if (rare.length) element.append(folded(rare, !common.length));
    if (!fields.length) element.append(h("p", { class: "quiet small" }, "This loss has no parameters."));
  }

  function mark(faults) {
    for (const [name, show] of marks) show(faults.get(name) ?? "");
  }

  return { element, build, mark };
}

function folded(fields, alone) {
  const elements = fields.map(({ element }) => element);
  return h(
    "details",
    { class: "rare", open: alone },
    h("summary", {}, alone ? "Parameters" : "More parameters"),
    h("div", { class: "fields" }, elements),
  );
}

/** The sliders and choices of the axis's further numbers: `{ element, build() }`. */
export function givenFields(state, changed) {
  const element = h("div", { class: "fields" });

  function build() {
    const entries = Object.entries(state.axis.given);
    element.replaceChildren();
    if (entries.length) element.append(h("span", { class: "field-title" }, "Plot at"));
    for (const [name, spec] of entries) {
      const set = (value) => {
        state.given[name] = Number(value);
        changed();
      };
      element.append(control(`at-${name}`, spec, state.given[name], set).element);
    }
  }

  return { element, build };
}

function control(id, spec, value, set) {
  if (!spec.choices) return slider(id, { ...spec, value, integer: spec.step === 1 }, set);
  const options = Object.entries(spec.choices).sort(([a], [b]) => b - a);
  return choice(id, options, value, set, null, spec.label);
}
