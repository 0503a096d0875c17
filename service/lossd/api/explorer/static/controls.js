/** Fields for parameters, made from their JSON Schema. */

import { inline } from "./documentation.js";
import { h } from "./dom.js";
import { parameterName } from "./words.js";

// The ends of sliders for numbers without bounds in their schema: beyond these the curve hardly changes.
const SPANS = {
  gamma: [0, 6],
  alpha: [0, 1],
  beta: [0, 2],
  delta: [0, 3],
  margin: [0, 3],
  temperature: [0, 1],
  smooth: [0, 10],
  over_penalty: [0, 8],
  factor: [0, 2],
  pos_weight: [0, 8],
  p: [1, 6],
  progress: [0, 1],
  "vae.beta": [0, 8],
  "gradnorm.alpha": [0, 3],
  "hinge_embedding.margin": [0, 3],
  "margin_ranking.margin": [-1, 3],
};
/** Parameters that are seldom set. */
export const RARE = new Set([
  "eps",
  "ignore_index",
  "from_logits",
  "full",
  "factor",
  "alpha_mode",
  "smoothing_mode",
  "absent",
  "include_background",
  "per_image",
  "log_target",
  "format",
  "zero_infinity",
  "blank",
]);
const FIRST = { number: 1, integer: 0 };

/** The parameters of a loss that can be set: all but the reduction and constants. */
export function settable(loss, hidden = []) {
  return Object.entries(loss.parameters).filter(
    ([name, schema]) => name !== "reduction" && !("const" in schema) && !hidden.includes(name),
  );
}

/**
 * A field for one parameter. Every change calls `set(value)`, with undefined for the default.
 *
 * @returns {element, kind, mark}: `kind` is "number", "choice", or "text" for JSON; `mark(fault)` shows a fault beside
 *   the field, or none if the text is empty.
 */
export function field(...of) {
  const made = unmarked(...of);
  const fault = h("p", { class: "small bad", role: "alert" });
  const mark = (text) => {
    if (fault.textContent !== text) fault.textContent = text;
    if (text) made.element.append(fault);
    else fault.remove();
    for (const control of made.element.querySelectorAll("input, textarea")) {
      if (text) control.setAttribute("aria-invalid", "true");
      else control.removeAttribute("aria-invalid");
    }
  };
  return { ...made, mark };
}

function unmarked(loss, name, schema, value, set) {
  const arms = schema.anyOf ?? [schema];
  const number = arms.find((arm) => arm.type === "number" || arm.type === "integer");
  const nullable = arms.some((arm) => arm.type === "null");
  const fallback = schema.default;
  if (schema.enum)
    return choice(
      name,
      schema.enum.map((entry) => [entry, String(entry).replaceAll("_", " ")]),
      value ?? fallback,
      set,
      schema.description,
    );
  if (schema.type === "boolean")
    return choice(
      name,
      [
        [true, "yes"],
        [false, "no"],
      ],
      value ?? fallback,
      set,
      schema.description,
    );
  if (schema.additionalProperties?.type === "number")
    return constants(name, value ?? fallback ?? {}, set, schema.description);
  if (!number || Array.isArray(value)) return text(name, value ?? fallback, set, schema);
  const bounds = span(loss.name, name, number, fallback);
  return slider(
    name,
    {
      ...bounds,
      value: value === undefined ? fallback : value,
      nullable,
      integer: number.type === "integer",
      first: FIRST[number.type],
    },
    set,
    schema.description,
  );
}

/** The ends and the step of a number's slider; without `max` there is no slider. */
function span(loss, name, schema, fallback) {
  const known = SPANS[`${loss}.${name}`] ?? SPANS[name];
  const tiny = typeof fallback === "number" && fallback !== 0 && Math.abs(fallback) < 1e-3;
  if (schema.type === "integer" || tiny || name === "eps")
    return { min: schema.minimum ?? null, max: null, step: "any" };
  let min = schema.minimum ?? schema.exclusiveMinimum ?? known?.[0] ?? 0;
  const max = schema.maximum ?? known?.[1] ?? Math.max(1, 4 * (fallback ?? 1));
  const step = max - min <= 2 ? 0.01 : 0.05;
  if ("exclusiveMinimum" in schema && min === schema.exclusiveMinimum) min += step;
  return { min, max, step, least: schema.minimum ?? schema.exclusiveMinimum ?? null };
}

/** A number as a slider and as digits. The digits may exceed the slider's ends; the service checks the bounds. */
export function slider(
  name,
  { label = parameterName(name), min, max, step, value, nullable = false, integer = false, first = 1 },
  set,
  description,
) {
  const id = `field-${name}`;
  const none =
    nullable &&
    h(
      "label",
      { class: "none-box" },
      h("input", { type: "checkbox", checked: value === null, onchange: toggle }),
      "none",
    );
  const digits = h("input", {
    type: "number",
    class: "digits",
    step: integer ? 1 : "any",
    value: value ?? "",
    "aria-label": `${label}, as digits`,
    oninput: typed,
  });
  const range =
    max !== null &&
    h("input", {
      type: "range",
      id,
      min,
      max,
      step,
      value: value ?? first,
      oninput: slid,
      "aria-describedby": description && `${id}-about`,
    });
  let current = value;
  paint();

  function slid() {
    current = Number(range.value);
    digits.value = current;
    if (none) none.firstChild.checked = false;
    paint();
    set(current);
  }
  function typed() {
    if (digits.value === "" || !Number.isFinite(digits.valueAsNumber)) return;
    current = digits.valueAsNumber;
    if (range) range.value = current;
    if (none) none.firstChild.checked = false;
    paint();
    set(current);
  }
  function toggle() {
    current = none.firstChild.checked ? null : Number(range ? range.value : first);
    digits.value = current ?? "";
    paint();
    set(current);
  }
  function paint() {
    if (!range) return;
    const part = (Number(range.value) - min) / (max - min);
    range.style.setProperty("--part", `${100 * Math.min(1, Math.max(0, part))}%`);
    range.classList.toggle("off", current === null);
  }
  if (!range) digits.id = id;
  return {
    kind: "number",
    element: framed(id, label, name, h("div", { class: "values" }, none, digits), range, description),
  };
}

/** A choice between a few options. */
export function choice(name, entries, value, set, description, label = parameterName(name)) {
  const buttons = entries.map(([entry, text]) =>
    h(
      "label",
      {},
      h("input", {
        type: "radio",
        name: `field-${name}`,
        value: String(entry),
        checked: String(entry) === String(value),
        onchange: () => set(entry),
      }),
      text,
    ),
  );
  const group = h("fieldset", { class: "choice" }, h("legend", { class: "unseen" }, label), buttons);
  return { kind: "choice", group, element: framed(null, label, name, null, group, description) };
}

/** A text area for JSON: lists, objects, formulas. */
function text(name, value, set, schema) {
  const id = `field-${name}`;
  const plain = schema.type === "string";
  const about = h("p", { class: "small bad", role: "status" });
  const area = h("textarea", {
    id,
    rows: plain ? 3 : Math.min(8, 1 + Math.ceil(JSON.stringify(value ?? null).length / 34)),
    spellcheck: "false",
    oninput: changed,
  });
  area.value = plain ? (value ?? "") : value === undefined ? "" : JSON.stringify(value);
  function changed() {
    about.textContent = "";
    if (plain) return set(area.value);
    try {
      set(area.value.trim() ? JSON.parse(area.value) : undefined);
    } catch {
      about.textContent = "This is not JSON yet.";
    }
    return undefined;
  }
  return { kind: "text", element: framed(id, parameterName(name), name, null, [area, about], schema.description) };
}

/** Numbers by name, such as a formula's constants: a slider each. */
function constants(name, value, set, description) {
  let current = { ...value };
  const list = h("div", { class: "fields" });
  const area = text(
    name,
    value,
    (entries) => {
      current = entries ?? {};
      build();
      set(current);
    },
    { description },
  );
  function build() {
    list.replaceChildren(
      ...Object.entries(current)
        .filter(([, v]) => typeof v === "number")
        .map(
          ([key, v]) =>
            slider(
              `${name}.${key}`,
              {
                label: key,
                min: Math.min(0, 2 * v),
                max: Math.max(1, 4 * v),
                step: 0.01,
                value: v,
              },
              (changed) => {
                current = { ...current, [key]: changed };
                area.element.querySelector("textarea").value = JSON.stringify(current);
                set(current);
              },
            ).element,
        ),
    );
  }
  build();
  return { kind: "text", element: h("div", { class: "fields" }, list, area.element) };
}

function framed(id, label, name, aside, body, description) {
  return h(
    "div",
    { class: "field" },
    h(
      "div",
      { class: "field-head" },
      h(
        id ? "label" : "span",
        { for: id },
        label === parameterName(name) && label !== name && label.length === 1
          ? [h("span", { class: "sign" }, label), " ", h("span", { class: "quiet mono" }, name)]
          : label,
      ),
      aside,
    ),
    body,
    description && h("p", { class: "about", id: id && `${id}-about` }, inline(description)),
  );
}
