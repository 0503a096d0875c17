/** Fields for parameters, made from their JSON Schema. */

import { choice } from "./controls/choice.js";
import { constants } from "./controls/constants.js";
import { slider } from "./controls/slider.js";
import { span } from "./controls/span.js";
import { text } from "./controls/text.js";
import { h } from "./dom.js";

/** Parameters that are seldom set. */
export const RARE = new Set([
  "nan_targets",
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
export function field(...parameter) {
  const made = unmarked(...parameter);
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
