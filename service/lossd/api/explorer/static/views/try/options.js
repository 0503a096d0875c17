/** What is computed, a loss's parameters, and the options of metrics and gradient. */

import { choice } from "../../controls/choice.js";
import { slider } from "../../controls/slider.js";
import { field, RARE, settable } from "../../controls.js";
import { breakable, h } from "../../dom.js";
import { byTask, FAMILY_NAMES } from "../../words.js";
import { OUTPUTS } from "./state.js";

const TITLES = { hessian: "The diagonal of the Hessian: the second derivative by each entry." };
const HESSIAN_OPTIONS = ["form", "floor"];
const GRADIENT_OPTIONS = ["clip_norm", "clip_value", "clip_scope"];
const METRICS_ALONE = new Set(["from_logits", "format", "ignore_index", "classes"]);
const KINDS = [
  ["loss", "Loss and metrics"],
  ["task", "Metrics only"],
];
const READINGS = { logits: "logits", probabilities: "probabilities", classes: "classes" };
const DECISIONS = "probabilities, or 0 and 1";

/** The choice of a loss or a task: `{ element, build() }`. The first entry of its box is the guess. */
export function subjectPicker(state, subjects, { setKind, setName }) {
  const select = h("select", { id: "loss-choice", onchange: () => setName(select.value || null) });
  const label = h("label", { class: "field-title", for: "loss-choice" });
  const element = h(
    "div",
    { class: "fields" },
    choice("kind", KINDS, state.kind, setKind, null, "Compute").group,
    h("div", { class: "field" }, label, select),
  );
  return { element, build };

  function build() {
    const families = FAMILY_NAMES.map((family) => [family, byTask(family, subjects[state.kind])]);
    const group = ([family, entries]) =>
      h(
        "optgroup",
        { label: family },
        entries.map(({ name }) => h("option", {}, name)),
      );
    const guess = h("option", { value: "" }, `Guessed: ${state.guessed[state.kind]}`);
    select.replaceChildren(guess, ...families.filter(([, entries]) => entries.length).map(group));
    select.value = state[state.kind] ?? "";
    label.textContent = state.kind === "loss" ? "Loss" : "Task";
  }
}

/** What the predictions of a task are, and the number of classes: `{ element, build() }`. */
export function readingFields(state, request, { setPredictions, changed }) {
  const element = h("div", { class: "fields" });
  return { element, build };

  function build() {
    const { readings = [] } = request.subject();
    const now = request.predictions();
    const names = { ...READINGS, ...(!readings.includes("classes") && { probabilities: DECISIONS }) };
    const entries = readings.map((reading) => [reading, names[reading]]);
    element.hidden = !readings.length;
    element.replaceChildren(
      ...(readings.length
        ? [choice("predictions", entries, now, setPredictions, null, "Predictions are").element]
        : []),
      ...(now === "classes" ? [classes()] : []),
    );
  }

  function classes() {
    const found = state.guessed.classes;
    const set = (value) => {
      state.metrics.classes = value;
      changed();
    };
    const value = state.metrics.classes ?? found;
    const about = `The highest class in the data is ${found - 1}. Enter a larger number if there are more classes.`;
    return slider(
      "metrics.classes",
      { label: "Number of classes", min: 1, max: null, value, integer: true },
      set,
      about,
    ).element;
  }
}

/** The boxes of the outputs: `{ element, build() }`. */
export function outputBoxes(state, request, changed) {
  const element = h("div", { class: "row" });
  return { element, build: () => element.replaceChildren(...OUTPUTS.map(box)) };

  function box(name) {
    const onchange = (event) => {
      state.outputs = OUTPUTS.filter((output) =>
        output === name ? event.target.checked : state.outputs.includes(output),
      );
      changed();
    };
    const disabled = !request.has(name);
    const checked = state.outputs.includes(name) && !disabled;
    const input = h("input", { type: "checkbox", checked, disabled, onchange });
    const title = disabled ? "The Hessian of this loss is not diagonal, or not known." : TITLES[name];
    return h("label", { class: "none-box", title }, input, name);
  }
}

/** The fields of the loss's parameters: `{ element, build() }`. */
export function parameterFields(state, request, changed) {
  const element = h("div", { class: "fields" });

  function build() {
    const loss = request.subject();
    const { reduction } = loss.parameters;
    const entries = [...(reduction?.enum ? [["reduction", reduction]] : []), ...settable(loss)];
    element.hidden = !entries.length;
    const fields = entries.map(([name, schema]) =>
      field(loss, name, schema, state.parameters[name], (value) => {
        if (value === undefined) delete state.parameters[name];
        else state.parameters[name] = value;
        changed();
      }),
    );
    const isSet = (i) => entries[i][0] in state.parameters;
    const common = fields.filter(({ kind }, i) => isSet(i) || (kind !== "text" && !RARE.has(entries[i][0])));
    const rare = fields.filter((entry) => !common.includes(entry)).map((entry) => entry.element);
    element.replaceChildren(...common.map((entry) => entry.element));
    if (!rare.length) return;
    const inner = h("div", { class: "fields" }, rare);
    element.append(h("details", { class: "rare" }, h("summary", {}, "More parameters"), inner));
  }

  return { element, build };
}

/** The metrics, their options, the clipping of the gradient and the form of the Hessian in a fold: `{ element, build() }`. */
export function metricOptions(state, request, metrics, { api, changed }) {
  const fields = h("div", { class: "fields" });
  const title = h("summary", {});
  const element = h("details", { class: "rare", ontoggle: () => build() }, title, fields);
  return { element, build };

  async function build() {
    const alone = state.kind === "task";
    const withHessian = !alone && request.outputs().includes("hessian");
    title.textContent = alone ? "Metrics and their options" : `Metrics, clipping${withHessian ? ", Hessian" : ""}`;
    if (!element.open) return;
    let schemas;
    try {
      schemas = (await api.catalogue("/openapi.json")).components.schemas;
    } catch (error) {
      if (!(error instanceof api.Problem)) throw error;
      fields.replaceChildren(h("p", { class: "small bad" }, error.message));
      return;
    }
    const known = metrics.filter((metric) => metric.task === request.subject().task);
    const ofMetrics = h("div", { class: "fields" });
    const showOptions = (selected) => {
      const { properties } = schemas.MetricOptions;
      const names = optionsOf(known.filter(({ name }) => selected.has(name))).filter((name) => name in properties);
      ofMetrics.replaceChildren(...names.map((name) => option(state.metrics, name, properties[name], "metrics")));
      ofMetrics.hidden = !names.length;
    };
    const boxes = metricBoxes(known, showOptions);
    const ofGradient = schemas.GradientOptions.properties;
    const ofHessian = schemas.HessianOptions.properties;
    fields.replaceChildren(
      ...(boxes.length
        ? [h("fieldset", { class: "checks" }, h("legend", { class: "field-title" }, "Metrics"), boxes), ofMetrics]
        : []),
      ...(alone ? [] : GRADIENT_OPTIONS.map((name) => option(state.gradient, name, ofGradient[name], "gradient"))),
      ...(withHessian ? HESSIAN_OPTIONS.map((name) => option(state.hessian, name, ofHessian[name], "hessian")) : []),
    );
  }

  /** The options that some metrics read or that are set, and those of metrics without a loss. */
  function optionsOf(selected) {
    const alone = state.kind === "task";
    const { predicted_classes: classes, task } = request.subject();
    const read = [...selected.flatMap((metric) => metric.options), ...Object.keys(state.metrics)];
    const among = new Set(read.filter((name) => name !== "names" && !METRICS_ALONE.has(name)));
    return [...among, alone && task === "boxes" && "format", alone && classes && "ignore_index"].filter(Boolean);
  }

  function set(values, name, value) {
    if (value === undefined || value === null) delete values[name];
    else values[name] = value;
    changed();
  }

  function option(values, name, schema, prefix) {
    const onset = (value) => set(values, name, value);
    return field({ name: prefix }, `${prefix}.${name}`, schema, values[name], onset).element;
  }

  /** A box for each metric; `shown(selected)` is called with the names of those that are computed. */
  function metricBoxes(known, shown) {
    const byDefault = known.filter((metric) => metric.default).map(({ name }) => name);
    const named = state.metrics.names ?? byDefault;
    const selected = new Set(named.flatMap((name) => (name === "default" ? byDefault : [name])));
    const refused = request.refused();
    const select = (name, isSelected) => {
      if (isSelected) selected.add(name);
      else selected.delete(name);
      const areDefaults = selected.size === byDefault.length && byDefault.every((each) => selected.has(each));
      const names = known.map((metric) => metric.name).filter((each) => selected.has(each));
      set(state.metrics, "names", areDefaults ? undefined : names);
      shown(selected);
    };
    shown(selected);
    return known.map(({ name, summary }) => {
      const disabled = refused.includes(name);
      const checked = selected.has(name) && !disabled;
      const onchange = (event) => select(name, event.target.checked);
      const input = h("input", { type: "checkbox", checked, disabled, onchange });
      const title = disabled ? "This metric needs scores, not classes." : summary;
      return h("label", { class: "none-box", title }, input, h("span", {}, breakable(name, "_")));
    });
  }
}
