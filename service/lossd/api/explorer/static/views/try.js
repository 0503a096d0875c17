/** A request of the reader's own: arrays in; loss, metrics and gradients out, or metrics alone; and the same as code. */

import { answered } from "../answer.js";
import { codePanel } from "../code.js";
import { choice } from "../controls/choice.js";
import { h, icon } from "../dom.js";
import { ask } from "../evaluation.js";
import { hasExample } from "../examples.js";
import { latest } from "../latest.js";
import { fileZone } from "./try/files.js";
import { inputFields } from "./try/inputs.js";
import { metricOptions, outputBoxes, parameterFields, readingFields, subjectPicker } from "./try/options.js";
import { requestOf } from "./try/request.js";
import { fromQuery, PREDICTIONS, toQuery } from "./try/state.js";

const FORMS = [
  ["json", "JSON"],
  ["safetensors", "safetensors"],
];

export async function render(root, context) {
  const { api, signal, announce, theme } = context;
  const [losses, tasks, metrics] = await Promise.all([api.losses(), api.tasks(), api.metrics()]);
  const subjects = {
    loss: losses.filter((loss) => loss.available && hasExample(loss)),
    task: tasks.map(asSubject),
  };
  const state = fromQuery(context.query, subjects);
  const arrays = [];
  const request = requestOf(state, subjects, arrays);
  let failure = null;

  const picker = subjectPicker(state, subjects, { setKind, setName });
  const readings = readingFields(state, request, { setPredictions, changed: refresh });
  const parameters = parameterFields(state, request, refresh);
  const options = metricOptions(state, request, metrics, { api, changed: refresh });
  const inputs = inputFields(state, request, arrays, refresh);
  const files = fileZone(state, request, arrays, { signal, announce, changed: takeFiles });
  const boxes = outputBoxes(state, request, () => {
    options.build();
    refresh();
  });
  const outputs = h("div", { class: "field" }, h("span", { class: "field-title" }, "Outputs"), boxes.element);
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
        "Paste numbers or drop files to see the service's answer. The page starts with an example.",
      ),
    ),
    h(
      "div",
      { class: "desk" },
      h(
        "section",
        { class: "card side", "aria-label": "What to compute" },
        picker.element,
        readings.element,
        parameters.element,
        outputs,
        options.element,
        form,
      ),
      h(
        "section",
        { class: "card more inputs", "aria-label": "Inputs", ...files.listeners },
        files.element,
        files.problem,
        inputs.element,
        h("div", { class: "row" }, inputs.adding, example),
      ),
      problem,
      verdict,
      result,
      code.element,
    ),
  );
  const update = latest(evaluate, signal);
  context.whenReady(() => {
    if (failure?.passing) update();
  });
  state.guessed = request.guessAll();
  if (!Object.keys(state.texts).length) await request.fillIn(context, state.parameters);
  state.guessed = request.guessAll();
  rebuild();

  function rebuild() {
    outputs.hidden = state.kind === "task";
    for (const part of [picker, readings, inputs, parameters, boxes, options]) part.build();
    refresh();
  }

  function refresh() {
    const before = state.guessed;
    const names = [request.subject().name, request.predictions()];
    state.guessed = request.guessAll();
    const [name, predictions] = [request.subject().name, request.predictions()];
    if (name !== names[0]) Object.assign(state, { parameters: {}, metrics: {} });
    if (name !== names[0] || predictions !== names[1]) return rebuild();
    if (state.guessed[state.kind] !== before[state.kind]) picker.build();
    if (state.guessed.classes !== before.classes) readings.build();
    context.navigate(context.path, toQuery(state), { replace: true });
    update();
  }

  /** Compute a loss or metrics only; of a loss that was chosen, the metrics of its task. */
  function setKind(kind) {
    const { task } = request.subject();
    const known = subjects.task.some(({ name }) => name === task);
    const ofLoss = kind === "task" && state.loss !== null && known ? { task } : {};
    return change({ kind, ...ofLoss, parameters: {}, metrics: {}, predictions: null });
  }

  function setName(name) {
    return change({ [state.kind]: name, parameters: {}, metrics: {}, predictions: null });
  }

  function setPredictions(predictions) {
    return change({ predictions });
  }

  /** Change what is computed; an example is replaced by one that fits. */
  async function change(fields) {
    Object.assign(state, fields);
    state.guessed = request.guessAll();
    if (state.pristine) {
      state.guessed.readings = []; // those of the example before
      await request.fillIn(context);
      state.guessed = request.guessAll();
    }
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
    const nothing = composed.outputs?.length === 0;
    if (Object.keys(faults).length || nothing) {
      markStale(nothing ? "Choose an output." : "");
      return;
    }
    code.show(composed, request.formOf(composed), api.keyIsSet());
    result.setAttribute("aria-busy", "true");
    try {
      show(await ask(api, composed, request.formOf(composed), aborted), composed);
    } catch (error) {
      if (!(error instanceof api.Problem)) throw error;
      fail(error, composed);
    } finally {
      result.removeAttribute("aria-busy");
    }
  }

  function show(answer, { task }) {
    const rated = task && metrics.filter((metric) => metric.task === task && metric.better).map(({ name }) => name);
    const [first, ...sections] = answered(answer, { theme, signal, hasClasses: request.hasClasses, rated });
    verdict.replaceChildren(first);
    result.replaceChildren(...sections);
    for (const part of [verdict, result]) delete part.dataset.stale;
    verdict.dataset.answers = Number(verdict.dataset.answers ?? 0) + 1;
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
        error.passing &&
          h("p", { class: "small quiet" }, "The page sends the request again when the service is ready."),
        error.page && h("p", {}, h("a", { href: error.page }, "What this error means")),
      ];
      problem.hidden = false;
      problem.replaceChildren(...lines.filter(Boolean));
    }
    verdict.dataset.refused = Number(verdict.dataset.refused ?? 0) + 1;
  }
}

/** A task with what losses have too, and with its `readings`: what its predictions may be. */
function asSubject(task) {
  const reads = task.inputs.some(({ name, types: [{ domain }] }) => name === "prediction" && domain === "logits");
  const readings = reads ? PREDICTIONS.filter((reading) => reading !== "classes" || task.predicted_classes) : [];
  return { ...task, task: task.name, parameters: {}, readings };
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
