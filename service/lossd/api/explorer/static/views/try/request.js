/** The request that the state describes: the loss, its inputs and the options. */

import { typed } from "../../asking.js";
import { exampleOf, guess } from "../../examples.js";
import { parse, role, Unreadable } from "../../files.js";

const LARGE = 100_000; // numbers; as JSON they take megabytes of text

/** A request of one of the losses; `arrays` are from files: `{ label, name, array }`. */
export function requestOf(state, available, arrays) {
  const loss = () => available.find(({ name }) => name === (state.loss ?? state.guessed));
  return { loss, spec, names, declared, isOpen, guessLoss, compose, formOf, hasClasses, fillIn };

  /** The catalogue's entry of an input; of an input that the request names, its types. */
  function spec(name) {
    const free = { shape: "", dtypes: role(name) === "target" ? ["float", "integer"] : ["float"] };
    return declared(name) ?? { name, summary: "", types: [loss().named_by_parameters ?? free] };
  }

  /** The names of the shown inputs: first those that the loss requires, then further ones. */
  function names() {
    const required = loss()
      .inputs.filter((input) => !input.optional && !input.name.includes("*"))
      .map((input) => input.name);
    const added = Object.keys(state.texts).filter((name) => !required.includes(name) && (isOpen() || declared(name)));
    return [...required, ...added];
  }

  function declared(name) {
    const isSeries = (input) => input.name.endsWith(".*") && name.startsWith(input.name.slice(0, -1));
    return loss().inputs.find((input) => input.name === name || isSeries(input));
  }

  /** Whether the request may name further inputs. */
  function isOpen() {
    const { batching, named_by_parameters: named, inputs } = loss();
    return batching === "composed" || Boolean(named) || inputs.some((input) => input.name.includes("*"));
  }

  function arrayOf(name) {
    const file = arrays[state.files[name]];
    return file ? file.array : parse(state.texts[name] ?? "");
  }

  /** The name of the loss that fits the inputs best. */
  function guessLoss() {
    try {
      return guess(arrayOf("prediction"), arrayOf("target"));
    } catch {
      return state.guessed ?? "cross_entropy";
    }
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
    const set = Object.entries(state.metrics).filter(([, value]) => value !== undefined);
    const request = { loss: { name: loss().name, ...state.parameters }, inputs, outputs: state.outputs };
    if (state.outputs.includes("gradient") && Object.keys(state.gradient).length) request.gradient = state.gradient;
    if (state.outputs.includes("metrics") && set.length) request.metrics = Object.fromEntries(set);
    return { request, faults };
  }

  /** The format of a request: the chosen one, or safetensors for a large request. */
  function formOf({ inputs }) {
    const size = Object.values(inputs).reduce((sum, { data }) => sum + data.length, 0);
    return state.form ?? (size > LARGE ? "safetensors" : "json");
  }

  /** Whether the second axis of an input counts classes. */
  function hasClasses(name) {
    const mode = state.parameters.mode ?? loss().parameters.mode?.default;
    return mode !== "binary" && Boolean(declared(name)?.types.some(({ shape }) => /^\(?N,? C\b/.test(shape)));
  }

  /** Replace the inputs by an example. Does nothing if another loss is chosen before the example arrives. */
  async function fillIn(context, set = {}) {
    const wanted = loss();
    const { inputs, parameters } = await exampleOf(wanted, context);
    if (loss() !== wanted) return;
    Object.assign(state, { texts: { ...inputs }, files: {}, parameters: { ...parameters, ...set }, pristine: true });
  }
}
