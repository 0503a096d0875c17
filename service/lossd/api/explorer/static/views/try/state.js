/** The state of a request, and its address. */

export const PREDICTIONS = ["logits", "probabilities", "classes"];
export const OUTPUTS = ["loss", "gradient", "hessian", "metrics"];
const DEFAULT_OUTPUTS = OUTPUTS.filter((name) => name !== "hessian");
const SHARED_LENGTH = 1500; // characters of numbers that an address may have

/**
 * A state without inputs.
 *
 * `kind` says what is computed: a loss, or the metrics of a task. `loss`, `task` and `predictions` (logits, probabilities
 * or classes) are null while they are guessed from the inputs. `texts` has the inputs as text, `files` the indices of
 * arrays from files. `form` is json, safetensors, or null for a choice by size. `pristine` says that the inputs are an
 * example.
 */
export function initial(kind = "loss") {
  return {
    kind,
    loss: null,
    task: null,
    predictions: null,
    guessed: {},
    parameters: {},
    metrics: {},
    gradient: {},
    hessian: {},
    texts: {},
    files: {},
    outputs: DEFAULT_OUTPUTS,
    form: null,
    pristine: false,
  };
}

/** The state that an address describes. */
export function fromQuery(query, { loss: losses, task: tasks }) {
  const state = initial(query.has("task") ? "task" : "loss");
  const nameIn = (key, entries) => (entries.some(({ name }) => name === query.get(key)) ? query.get(key) : null);
  state.loss = nameIn("loss", losses);
  state.task = nameIn("task", tasks);
  if (PREDICTIONS.includes(query.get("predictions"))) state.predictions = query.get("predictions");
  if (["json", "safetensors"].includes(query.get("as"))) state.form = query.get("as");
  if (query.has("outputs")) state.outputs = OUTPUTS.filter((name) => query.get("outputs").split(",").includes(name));
  const options = { p: state.parameters, m: state.metrics, g: state.gradient, h: state.hessian };
  for (const [key, text] of query) {
    const [prefix, name] = [key.slice(0, key.indexOf(".")), key.slice(key.indexOf(".") + 1)];
    if (prefix === "in") state.texts[name] = text;
    else if (options[prefix])
      try {
        options[prefix][name] = JSON.parse(text);
      } catch {
        // the address was cut
      }
  }
  return state;
}

/** The query that describes a state; long inputs and inputs from files are left out. */
export function toQuery(state) {
  const query = new URLSearchParams();
  if (state.kind === "task") query.set("task", state.task ?? "");
  else if (state.loss) query.set("loss", state.loss);
  if (state.kind === "task" && state.predictions) query.set("predictions", state.predictions);
  if (state.form) query.set("as", state.form);
  if (String(state.outputs) !== String(DEFAULT_OUTPUTS)) query.set("outputs", state.outputs.join(","));
  const options = { p: state.parameters, m: state.metrics, g: state.gradient, h: state.hessian };
  for (const [prefix, values] of Object.entries(options))
    for (const [name, value] of Object.entries(values)) query.set(`${prefix}.${name}`, JSON.stringify(value));
  const texts = Object.entries(state.texts).filter(([name]) => !(name in state.files));
  const length = texts.reduce((sum, [, text]) => sum + text.length, 0);
  if (!state.pristine && length < SHARED_LENGTH) for (const [name, text] of texts) query.set(`in.${name}`, text);
  return query;
}
