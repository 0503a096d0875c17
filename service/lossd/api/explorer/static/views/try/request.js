/** The request that the state describes: a loss or a task, its inputs and the options. */

import { nest, typed } from "../../evaluation.js";
import { exampleOf, guess, guessTask, highestClass, readingsOf } from "../../examples.js";
import { parse, role, Unreadable } from "../../files.js";
import { elementCount } from "../../safetensors.js";

const OF_ONES = new Set(["mask", "element_weight", "sample_weight"]);
const MOST_ONES = 2000; // longer texts are no help to edit
const LARGE = 100_000; // numbers; as JSON they take megabytes of text

/**
 * A request of a loss, or of the metrics of a task; `arrays` are from files: `{ label, name, array }`.
 *
 * @param subjects the losses as `loss` and the tasks as `task`, each an entry with inputs and parameters
 */
export function requestOf(state, subjects, arrays) {
  return {
    subject,
    predictions,
    refused,
    spec,
    names,
    declared,
    isOpen,
    guessAll,
    compose,
    formOf,
    hasClasses,
    has,
    outputs,
    ones,
    fillIn,
  };

  /** The loss or the task; a task with the inputs that it takes of such predictions. */
  function subject() {
    const name = state[state.kind] ?? state.guessed[state.kind];
    const found = subjects[state.kind].find((entry) => entry.name === name);
    const reading = predictions(found);
    if (reading === "classes") return { ...found, inputs: found.predicted_classes.inputs };
    return reading === "probabilities" ? { ...found, inputs: found.inputs.map(ofProbabilities) } : found;
  }

  /** What the predictions are: one of the task's `readings`. Null of a loss, and of tasks of another kind. */
  function predictions({ readings = [] } = subject()) {
    if (!readings.length) return null;
    return (
      [state.predictions, ...(state.guessed.readings ?? [])].find((each) => readings.includes(each)) ?? readings[0]
    );
  }

  /** The names of the metrics that these predictions do not have. */
  function refused() {
    return predictions() === "classes" ? subject().predicted_classes.refused : [];
  }

  /** The catalogue's entry of an input; of an input that the request names, its types. */
  function spec(name) {
    const free = { shape: "", dtypes: role(name) === "target" ? ["float", "integer"] : ["float"] };
    return declared(name) ?? { name, summary: "", types: [subject().named_by_parameters ?? free] };
  }

  /** The names of the shown inputs: first those that the subject requires, then further ones. */
  function names() {
    const required = subject()
      .inputs.filter((input) => !input.optional && !input.name.includes("*"))
      .map((input) => input.name);
    const added = Object.keys(state.texts).filter((name) => !required.includes(name) && (isOpen() || declared(name)));
    return [...required, ...added];
  }

  function declared(name) {
    const isSeries = (input) => input.name.endsWith(".*") && name.startsWith(input.name.slice(0, -1));
    return subject().inputs.find((input) => input.name === name || isSeries(input));
  }

  /** Whether the request may name further inputs. */
  function isOpen() {
    const { batching, named_by_parameters: named, inputs } = subject();
    return batching === "composed" || Boolean(named) || inputs.some((input) => input.name.includes("*"));
  }

  function arrayOf(name) {
    const file = arrays[state.files[name]];
    return file ? file.array : parse(state.texts[name] ?? "");
  }

  /** What fits the inputs best: `{ loss, task, readings, classes }`, `classes` being one more than the highest. */
  function guessAll() {
    let prediction;
    let target;
    try {
      [prediction, target] = [arrayOf("prediction"), arrayOf("target")];
    } catch {
      return { loss: "cross_entropy", task: "multiclass", ...state.guessed };
    }
    const loss = guess(prediction, target);
    if (state.kind === "loss") return { ...state.guessed, loss };
    const task = guessTask(prediction, target) ?? subjects.loss.find(({ name }) => name === loss).task;
    const highest = highestClass([prediction, target], state.metrics.ignore_index);
    return { loss, task, readings: readingsOf(prediction, target), classes: highest + 1 };
  }

  /** `{ request, faults }`: what to send, and why inputs cannot be read, by name. */
  function compose() {
    const inputs = {};
    const faults = {};
    for (const name of names()) {
      try {
        inputs[name] = typed(arrayOf(name), spec(name));
      } catch (error) {
        if (!(error instanceof Unreadable || error instanceof RangeError)) throw error;
        faults[name] = error.message;
      }
    }
    const metrics = metricsOptions();
    const options = Object.keys(metrics).length ? { metrics } : {};
    if (state.kind === "task") return { request: { task: subject().name, inputs, ...options }, faults };
    const request = { loss: { name: subject().name, ...state.parameters }, inputs, outputs: outputs() };
    for (const name of ["gradient", "hessian"])
      if (outputs().includes(name) && Object.keys(state[name]).length) request[name] = state[name];
    return { request: { ...request, ...(state.outputs.includes("metrics") && options) }, faults };
  }

  function metricsOptions() {
    const { classes = state.guessed.classes, ...set } = state.metrics;
    if (set.names) set.names = set.names.filter((name) => !refused().includes(name));
    const reading = predictions();
    if (reading === "probabilities") set.from_logits = false;
    if (reading === "classes") set.classes = classes;
    return Object.fromEntries(Object.entries(set).filter(([, value]) => value !== undefined));
  }

  /** The format of a request: the chosen one, or safetensors for a large request. */
  function formOf({ inputs }) {
    const size = Object.values(inputs).reduce((sum, { data }) => sum + data.length, 0);
    return state.form ?? (size > LARGE ? "safetensors" : "json");
  }

  /** Whether the second axis of an input counts classes. */
  function hasClasses(name) {
    const mode = state.parameters.mode ?? subject().parameters.mode?.default;
    return mode !== "binary" && Boolean(declared(name)?.types.some(({ shape }) => /^\(?N,? C\b/.test(shape)));
  }

  /** Whether the loss has an output. */
  function has(output) {
    return output !== "hessian" || subject().hessian;
  }

  /** The outputs that are asked for, of those that the loss has. */
  function outputs() {
    return state.outputs.filter(has);
  }

  /** The text of a mask or of weights that change nothing, in the shape that fits the inputs; empty if it is unknown. */
  function ones(name) {
    const shapes = spec(name).types.map(({ shape }) => shape);
    const alike = subject().inputs.find(({ optional, types: [{ shape }] }) => !optional && shapes.includes(shape));
    if (!OF_ONES.has(name) || !(alike || shapes.includes("(N,)"))) return "";
    try {
      const { shape } = arrayOf((alike ?? subject().inputs[0]).name);
      const fitting = alike ? shape : shape.slice(0, 1);
      const count = elementCount(fitting);
      return fitting.length && count <= MOST_ONES ? JSON.stringify(nest(new Array(count).fill(1), fitting)) : "";
    } catch (error) {
      if (!(error instanceof Unreadable || error instanceof RangeError)) throw error;
      return "";
    }
  }

  /** Replace the inputs by an example. Does nothing if something else is chosen before the example arrives. */
  async function fillIn(context, set = {}) {
    const chosen = subject();
    const { inputs, parameters } = await exampleOf(chosen, subjects.loss, context);
    if (subject().name !== chosen.name) return;
    Object.assign(state, { texts: { ...inputs }, files: {}, parameters: { ...parameters, ...set }, pristine: true });
  }
}

const ofProbabilities = (input) =>
  input.name === "prediction"
    ? { ...input, types: input.types.map((type) => ({ ...type, domain: "probability" })) }
    : input;
