/** A value as text. */

import { h } from "../dom.js";
import { parameterName } from "../words.js";
import { framed } from "./frame.js";

/** A text area for JSON: lists, objects, formulas. */
export function text(name, value, set, schema) {
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
