/** The documentation of a loss: inputs, parameters, gradient, references. */

import { settable } from "../../controls.js";
import { inline, prose, reference, sections } from "../../documentation.js";
import { h, scrollRegion } from "../../dom.js";

export function documentation(loss) {
  const parts = sections(loss.documentation);
  const inputs = loss.inputs.map((input) =>
    h(
      "tr",
      {},
      h(
        "th",
        { scope: "row" },
        h("code", {}, input.name),
        input.optional && h("span", { class: "quiet small" }, " optional"),
      ),
      h(
        "td",
        {},
        [...new Set(input.types.map((type) => type.shape))].map((shape) => h("code", { class: "shape" }, shape)),
      ),
      h("td", {}, inline(input.summary), input.differentiable && [" ", h("span", { class: "chip" }, "differentiable")]),
    ),
  );
  const parameters = settable(loss).map(([name, schema]) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, h("code", {}, name)),
      h("td", {}, h("code", {}, "default" in schema ? JSON.stringify(schema.default) : "required")),
      h("td", {}, inline(schema.description ?? "")),
    ),
  );
  const table = (label, heads, rows) =>
    scrollRegion(
      label,
      h(
        "table",
        { class: "facts" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            heads.map((head) => h("th", { scope: "col" }, head)),
          ),
        ),
        h("tbody", {}, rows),
      ),
    );
  return h(
    "div",
    { class: "known" },
    h(
      "section",
      { class: "card" },
      h("h2", {}, "Definition"),
      prose(`${loss.summary}\n\n${parts[""]}`),
      h(
        "div",
        { class: "guide" },
        part("Returns", parts.Returns && prose(parts.Returns)),
        part("Gradient", parts.Gradient && prose(parts.Gradient)),
        part("References", loss.references.length > 0 && references(loss.references)),
      ),
    ),
    h(
      "section",
      { class: "card" },
      h("h2", {}, "Inputs and parameters"),
      table("Inputs", ["Input", "Shape", ""], inputs),
      parameters.length > 0 && table("Parameters", ["Parameter", "Default", ""], parameters),
    ),
  );
}

const part = (heading, content) => content && h("section", {}, h("h3", {}, heading), content);

const references = (texts) =>
  h(
    "ul",
    { class: "references" },
    texts.map((text) => h("li", {}, reference(text))),
  );
