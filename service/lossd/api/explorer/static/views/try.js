/** A request of the reader's own: arrays in; loss, diagnostics, metrics and gradients out; and the same request as code. */

import { answered } from "../answer.js";
import { ask } from "../asking.js";
import { codePanel } from "../code.js";
import { choice } from "../controls/choice.js";
import { h, icon } from "../dom.js";
import { hasExample } from "../examples.js";
import { latest } from "../latest.js";
import { fileZone } from "./try/files.js";
import { inputFields } from "./try/inputs.js";
import { lossPicker, metricOptions, outputBoxes, parameterFields } from "./try/options.js";
import { requestOf } from "./try/request.js";
import { fromQuery, toQuery } from "./try/state.js";

const FORMS = [
  ["json", "JSON"],
  ["safetensors", "safetensors"],
];

export async function render(root, context) {
  const { api, signal, announce, theme } = context;
  const [losses, metrics] = await Promise.all([api.losses(), api.metrics()]);
  const available = losses.filter((loss) => loss.available && hasExample(loss));
  const state = fromQuery(context.query, available);
  const arrays = [];
  const request = requestOf(state, available, arrays);
  let failure = null;

  const picker = lossPicker(state, available, setLoss);
  const parameters = parameterFields(state, request, refresh);
  const options = metricOptions(state, request, metrics, { api, changed: refresh });
  const inputs = inputFields(state, request, arrays, refresh);
  const files = fileZone(state, request, arrays, { signal, announce, changed: takeFiles });
  const code = codePanel();
  const form = h("div", {});
  const problem = h("div", { class: "notice", role: "alert", hidden: true });
  const [verdict, result] = [h("div", { class: "results" }), h("div", { class: "results" })];
  const example = h(
    "button",
    { type: "button", class: "plain", onclick: () => request.fillIn(context).then(rebuild) },
    icon("reset"),
    "Fill in an example",
  );

  root.append(
    h(
      "header",
      { class: "title" },
      h("h1", {}, "Try it"),
      h(
        "p",
        { class: "lead" },
        "Paste numbers or drop files, and see the service's answer. The page starts with an example.",
      ),
    ),
    h(
      "div",
      { class: "board" },
      h(
        "div",
        { class: "results" },
        h(
          "section",
          { class: "card more", "aria-label": "Inputs", ...files.listeners },
          files.element,
          files.problem,
          inputs.element,
          h("div", { class: "row" }, inputs.adding, example),
        ),
        problem,
        verdict,
      ),
      h(
        "section",
        { class: "card side", "aria-label": "Loss and options" },
        h("div", { class: "field" }, h("label", { class: "field-title", for: "loss-choice" }, "Loss"), picker),
        parameters.element,
        h("div", { class: "field" }, h("span", { class: "field-title" }, "Compute"), outputBoxes(state, refresh)),
        options.element,
        form,
      ),
    ),
    result,
    code.element,
  );
  const update = latest(evaluate, signal);
  context.whenReady(() => {
    if (failure?.passing) update();
  });
  state.guessed = request.guessLoss();
  if (!Object.keys(state.texts).length) await request.fillIn(context, state.parameters);
  rebuild();

  function rebuild() {
    inputs.build();
    parameters.build();
    options.build();
    refresh();
  }

  function refresh() {
    const before = request.loss();
    state.guessed = request.guessLoss();
    if (request.loss() !== before && state.loss === null) {
      state.parameters = {};
      state.metrics = {};
      parameters.build();
      options.build();
    }
    picker.options[0].textContent = `Guessed: ${state.guessed}`;
    context.navigate(context.path, toQuery(state), { replace: true });
    update();
  }

  async function setLoss(name) {
    state.loss = name;
    state.parameters = {};
    state.metrics = {};
    if (state.pristine) await request.fillIn(context);
    rebuild();
  }

  function takeFiles() {
    inputs.build();
    refresh();
  }

  async function evaluate(aborted) {
    const { request: composed, faults } = request.compose();
    for (const [name, tensor] of Object.entries(composed.inputs)) inputs.fields[name]?.show(tensor);
    for (const [name, field] of Object.entries(inputs.fields)) field.fault(faults[name] ?? "");
    problem.hidden = true;
    failure = null;
    showForm(composed);
    if (Object.keys(faults).length || !composed.outputs.length) {
      markStale(composed.outputs.length ? "" : "Choose what to compute.");
      return;
    }
    code.show(composed, request.formOf(composed), api.keyIsSet());
    result.setAttribute("aria-busy", "true");
    try {
      show(await ask(api, composed, request.formOf(composed), aborted));
    } catch (error) {
      if (!(error instanceof api.Problem)) throw error;
      fail(error, composed);
    } finally {
      result.removeAttribute("aria-busy");
    }
  }

  function show(answer) {
    const [first, ...sections] = answered(answer, { theme, signal, hasClasses: request.hasClasses });
    verdict.replaceChildren(first);
    result.replaceChildren(...sections);
    for (const part of [verdict, result]) delete part.dataset.stale;
    result.dataset.answers = Number(result.dataset.answers ?? 0) + 1;
    announce(typeof answer.loss === "number" ? `Loss ${context.plots.short(answer.loss)}` : "Answered");
  }

  function showForm(composed) {
    const now = request.formOf(composed);
    if (form.dataset.form === now) return;
    form.dataset.form = now;
    const set = (name) => {
      state.form = name;
      refresh();
    };
    form.replaceChildren(choice("sent-as", FORMS, now, set, null, "Format").element);
  }

  function markStale(sentence) {
    for (const part of [verdict, result]) part.dataset.stale = "";
    problem.hidden = !sentence;
    problem.replaceChildren(h("p", {}, sentence));
  }

  /** Show an error beside the input that it names, or above the answer. */
  function fail(error, composed) {
    failure = error;
    markStale("");
    const [name, detail] = culprit(error, Object.keys(composed.inputs));
    if (name in inputs.fields) inputs.fields[name].fault(detail);
    else {
      const lines = [
        h("p", {}, error.message),
        error.passing && h("p", { class: "small quiet" }, "It is sent again when the service is ready."),
        error.page && h("p", {}, h("a", { href: error.page }, "What this error means")),
      ];
      problem.hidden = false;
      problem.replaceChildren(...lines.filter(Boolean));
    }
    result.dataset.refused = Number(result.dataset.refused ?? 0) + 1;
  }
}

/** The input that an error is about, and its fault: by the pointer, else the input that the message names first. */
function culprit(error, names) {
  for (const { pointer, detail } of error.errors) {
    const name = /^\/inputs\/([^/]+)/.exec(pointer)?.[1];
    if (names.includes(name)) return [name, detail];
  }
  if (error.errors.some(({ pointer }) => /^\/(loss|metrics|gradient|outputs)/.test(pointer))) return [];
  const place = (name) => error.message.search(new RegExp(`(^|[^\\w.])${name.replace(/[.*]/g, "\\$&")}($|[^\\w])`));
  const [named] = names.filter((name) => place(name) >= 0).sort((a, b) => place(a) - place(b));
  return [named, error.message];
}
