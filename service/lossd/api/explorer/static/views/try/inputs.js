/** The fields of the inputs: typed numbers, or arrays from files. */

import { inline } from "../../documentation.js";
import { h, icon } from "../../dom.js";
import { dtypeName } from "../../evaluation.js";

const sizeOf = (shape) => shape.join(" × ");

/** The fields: `{ element, adding, fields, build() }`; `fields` has each `{ show(tensor), fault(text), focus() }`. */
export function inputFields(state, request, arrays, changed) {
  const element = h("div", { class: "slots" });
  const adding = h("div", { class: "row" });
  const self = { element, adding, fields: {}, build };
  return self;

  function build() {
    self.fields = Object.fromEntries(request.names().map((name) => [name, inputField(name)]));
    element.replaceChildren(...Object.values(self.fields).map((field) => field.element));
    adding.replaceChildren(h("div", { class: "narrow" }, optionalInputs()), ...(request.isOpen() ? namedInput() : []));
  }

  function edit(change) {
    change();
    state.pristine = false;
    build();
    changed();
  }

  function add(name) {
    edit(() => {
      state.texts[name] = request.ones(name);
    });
    self.fields[name]?.focus();
  }

  function optionalInputs() {
    const shown = request.names();
    const spare = request.subject().inputs.filter((input) => input.optional && !shown.includes(input.name));
    const select = h(
      "select",
      { "aria-label": "Add an input", onchange: () => add(select.value) },
      h("option", { value: "" }, "Add an input …"),
      spare.map(({ name }) => h("option", {}, name)),
    );
    return select;
  }

  function namedInput() {
    const name = h("input", { type: "text", "aria-label": "Name of a further input", placeholder: "name" });
    const submit = () => {
      if (name.value.trim()) add(name.value.trim());
    };
    name.addEventListener("keydown", (event) => event.key === "Enter" && submit());
    const button = h("button", { type: "button", class: "plain", onclick: submit }, icon("plus"), "Add");
    return [h("div", { class: "narrow" }, name), button];
  }

  function inputField(name) {
    const spec = request.spec(name);
    const id = `input-${name}`;
    const about = h("span", { class: "small quiet number" });
    const fault = h("p", { class: "small bad", id: `${id}-fault`, role: "alert" });
    const source = arrays.length > 0 && sourceChoice(name);
    const isFile = Boolean(arrays[state.files[name]]);
    const area = isFile ? null : textArea(name, id);
    const control = area ?? source;
    const shapes = spec.types.map(({ shape }) => shape).filter(Boolean);
    const title = h(
      isFile ? "span" : "label",
      { for: isFile ? null : id },
      h("span", { class: "mono" }, name),
      shapes.length > 0 && h("span", { class: "quiet small mono" }, ` ${shapes.join(" or ")}`),
    );
    const head = h("div", { class: "field-head" }, title, h("span", { class: "values" }, about, removal(name)));
    const summary = spec.summary && h("p", { class: "about" }, inline(spec.summary));
    return {
      element: h("div", { class: "field" }, head, source, area, fault, summary),
      show({ shape, dtype }) {
        about.textContent = `${sizeOf(shape) || "a number"} · ${dtypeName(dtype)}`;
      },
      fault(text) {
        if (fault.textContent !== text) fault.textContent = text;
        if (text) control.setAttribute("aria-invalid", "true");
        else control.removeAttribute("aria-invalid");
      },
      focus: () => control.focus(),
    };
  }

  function textArea(name, id) {
    const area = h("textarea", {
      id,
      rows: 6,
      spellcheck: "false",
      autocomplete: "off",
      "aria-describedby": `${id}-fault`,
      oninput: () => {
        state.texts[name] = area.value;
        state.pristine = false;
        changed();
      },
    });
    area.value = state.texts[name] ?? "";
    return area;
  }

  function sourceChoice(name) {
    const onchange = () => {
      edit(() => {
        if (select.value === "") delete state.files[name];
        else state.files[name] = Number(select.value);
      });
      self.fields[name].focus();
    };
    const options = arrays.map(({ label, array: { shape, dtype } }, i) =>
      h("option", { value: i }, `${label} · ${sizeOf(shape)}${dtype ? ` ${dtypeName(dtype)}` : ""}`),
    );
    const typed = h("option", { value: "" }, "typed here");
    const select = h("select", { "aria-label": `Source of ${name}`, onchange }, typed, options);
    select.value = state.files[name] ?? "";
    return select;
  }

  function removal(name) {
    if (request.subject().inputs.some((input) => input.name === name && !input.optional)) return null;
    const onclick = () => {
      delete state.texts[name];
      delete state.files[name];
      build();
      changed();
    };
    return h("button", { type: "button", class: "tiny", "aria-label": `Remove ${name}`, onclick }, icon("close"));
  }
}
