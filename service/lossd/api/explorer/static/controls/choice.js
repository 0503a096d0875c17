/** One of a few options. */

import { h } from "../dom.js";
import { parameterName } from "../words.js";
import { framed } from "./frame.js";

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
