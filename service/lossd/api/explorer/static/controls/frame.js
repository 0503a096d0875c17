/** The frame of every control: its label, and its description. */

import { inline } from "../documentation.js";
import { breakable, h } from "../dom.js";
import { parameterName } from "../words.js";

/** An element with a label before a control and a description behind it. */
export function framed(id, label, name, aside, body, description) {
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
          : breakable(label, "."),
      ),
      aside,
    ),
    body,
    description && h("p", { class: "about", id: id && `${id}-about` }, inline(description)),
  );
}
