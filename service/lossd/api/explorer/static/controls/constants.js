/** Several numbers by name. */

import { h } from "../dom.js";
import { slider } from "./slider.js";
import { text } from "./text.js";

/** Numbers by name, such as a formula's constants: a slider each. */
export function constants(name, value, set, description) {
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
