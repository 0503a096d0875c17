/** The loss, its parameters, and the options of metrics and gradient. */

import { field, RARE, settable } from "../../controls.js";
import { h } from "../../dom.js";
import { byTask, FAMILY_NAMES } from "../../words.js";
import { OUTPUTS } from "./state.js";

const GRADIENT_OPTIONS = ["clip_norm", "clip_value", "clip_scope"];
const METRICS_ALONE = new Set(["from_logits", "format", "ignore_index", "classes"]);

/** The box of losses by family; its first entry is the guess. */
export function lossPicker(state, available, chosen) {
  const select = h("select", { id: "loss-choice", onchange: () => chosen(select.value || null) });
  const families = FAMILY_NAMES.map((family) => [family, byTask(family, available)]);
  const group = ([label, losses]) =>
    h(
      "optgroup",
      { label },
      losses.map(({ name }) => h("option", {}, name)),
    );
  select.append(h("option", { value: "" }, ""), ...families.filter(([, losses]) => losses.length).map(group));
  select.value = state.loss ?? "";
  return select;
}

/** The boxes of the outputs. */
export function outputBoxes(state, changed) {
  const box = (name) => {
    const onchange = (event) => {
      state.outputs = OUTPUTS.filter((output) =>
        output === name ? event.target.checked : state.outputs.includes(output),
      );
      changed();
    };
    const input = h("input", { type: "checkbox", checked: state.outputs.includes(name), onchange });
    return h("label", { class: "none-box" }, input, name);
  };
  return h("div", { class: "row" }, OUTPUTS.map(box));
}

/** The fields of the loss's parameters: `{ element, build() }`. */
export function parameterFields(state, request, changed) {
  const element = h("div", { class: "fields" });

  function build() {
    const loss = request.loss();
    const { reduction } = loss.parameters;
    const entries = [...(reduction?.enum ? [["reduction", reduction]] : []), ...settable(loss)];
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

/** The metrics, their options and the clipping of the gradient in a fold: `{ element, build() }`. */
export function metricOptions(state, request, metrics, { api, changed }) {
  const fields = h("div", { class: "fields" });
  const element = h(
    "details",
    { class: "rare", ontoggle: () => build() },
    h("summary", {}, "Metrics, clipping"),
    fields,
  );
  return { element, build };

  async function build() {
    if (!element.open) return;
    let schemas;
    try {
      schemas = (await api.catalogue("/openapi.json")).components.schemas;
    } catch (error) {
      if (!(error instanceof api.Problem)) throw error;
      fields.replaceChildren(h("p", { class: "small bad" }, error.message));
      return;
    }
    const known = metrics.filter((metric) => metric.task === request.loss().task);
    const { properties } = schemas.MetricOptions;
    const names = [...new Set(known.flatMap((metric) => metric.options))];
    const applying = names.filter((name) => name in properties && !METRICS_ALONE.has(name));
    const boxes = metricBoxes(known);
    fields.replaceChildren(
      ...(boxes.length
        ? [h("fieldset", { class: "checks" }, h("legend", { class: "field-title" }, "Metrics"), boxes)]
        : []),
      ...applying.map((name) => option(state.metrics, name, properties[name], "metrics")),
      ...GRADIENT_OPTIONS.map((name) =>
        option(state.gradient, name, schemas.GradientOptions.properties[name], "gradient"),
      ),
    );
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

  function metricBoxes(known) {
    const byDefault = known.filter((metric) => metric.default).map(({ name }) => name);
    const named = state.metrics.names ?? byDefault;
    const selected = new Set(named.flatMap((name) => (name === "default" ? byDefault : [name])));
    const select = (name, isSelected) => {
      if (isSelected) selected.add(name);
      else selected.delete(name);
      const areDefaults = selected.size === byDefault.length && byDefault.every((each) => selected.has(each));
      const names = known.map((metric) => metric.name).filter((each) => selected.has(each));
      set(state.metrics, "names", areDefaults ? undefined : names);
    };
    return known.map(({ name, summary }) => {
      const onchange = (event) => select(name, event.target.checked);
      const input = h("input", { type: "checkbox", checked: selected.has(name), onchange });
      return h("label", { class: "none-box", title: summary }, input, name);
    });
  }
}
