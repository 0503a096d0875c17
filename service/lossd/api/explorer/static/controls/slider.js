/** A number. */

import { h } from "../dom.js";
import { parameterName } from "../words.js";
import { framed } from "./frame.js";

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
