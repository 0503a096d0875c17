/** A request of the reader's own: arrays in, loss, diagnostics, metrics and gradients out, and the commands that do the same. */

import { answered } from "../answer.js";
import { asFile, ask, dtypeName, typed } from "../asking.js";
import { choice, field, RARE, settable } from "../controls.js";
import { inline } from "../documentation.js";
import { h, icon } from "../dom.js";
import { exampleOf, guess, hasExample } from "../examples.js";
import { ENDINGS, parse, read, role, Unreadable } from "../files.js";
import { latest } from "../latest.js";
import { FILE, snippets } from "../snippets.js";
import { FAMILY_NAMES, familyOf } from "../words.js";

const OUTPUTS = ["loss", "gradient", "metrics"];
const GRADIENT_OPTIONS = ["clip_norm", "clip_value", "clip_scope"];
const METRICS_ALONE = new Set(["from_logits", "format", "ignore_index"]);
const LANGUAGES = { curl: "curl", python: "Python", javascript: "JavaScript" };
const SHARED_LENGTH = 1500;
const LARGE = 100_000; // numbers; as JSON they would take megabytes of text

export async function render(root, context) {
  const { api, signal, announce, theme } = context;
  const [losses, metrics] = await Promise.all([api.losses(), api.metrics()]);
  const available = losses.filter((loss) => loss.available && hasExample(loss));
  const state = fromAddress(context.query, available);
  const arrays = []; // what files brought: { label, name, array }
  let fields = {};
  let current = null; // { request, snippets }

  const picker = h("select", { id: "loss-choice", onchange: chosen });
  const slots = h("div", { class: "slots" });
  const adding = h("div", { class: "row" });
  const form = h("div", { class: "fields" });
  const options = h("div", { class: "fields" });
  const files = h("input", {
    type: "file",
    multiple: true,
    class: "unseen",
    id: "files",
    accept: ENDINGS.join(","),
    onchange: () => {
      take(files.files);
    },
  });
  const zone = h(
    "label",
    { class: "drop", for: "files" },
    files,
    icon("open"),
    h("span", {}, h("strong", {}, "Choose files"), " or drop them here"),
    h("span", { class: "small quiet" }, ".npy, .npz, .safetensors, .csv; they are read in this page"),
  );
  const fileProblem = h("p", { class: "small bad", role: "alert" });
  const problem = h("div", { class: "notice", role: "alert", hidden: true });
  const [verdict, result] = [h("div", { class: "results" }), h("div", { class: "results" })];
  const commands = h("section", { class: "card more" });
  const [outputs, formChoice] = [h("div", { class: "row" }), h("div", {})];

  root.append(
    h(
      "header",
      { class: "title" },
      h("h1", {}, "Try it"),
      h(
        "p",
        { class: "lead" },
        "Paste numbers or drop files, and see what the service answers. The first ones are an example.",
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
          { class: "card more", "aria-label": "Inputs", ondragover: over, ondragleave: out, ondrop: dropped },
          zone,
          fileProblem,
          slots,
          h(
            "div",
            { class: "row" },
            adding,
            h(
              "button",
              {
                type: "button",
                class: "plain",
                onclick: () => fillIn().then(rebuild),
              },
              icon("reset"),
              "Fill in an example",
            ),
          ),
        ),
        problem,
        verdict,
      ),
      h(
        "section",
        { class: "card side", "aria-label": "Loss and options" },
        h("div", { class: "field" }, h("label", { class: "field-title", for: "loss-choice" }, "Loss"), picker),
        form,
        h("div", { class: "field" }, h("span", { class: "field-title" }, "Asked for"), outputs),
        h(
          "details",
          { class: "rare", ontoggle: (event) => event.target.open && buildOptions() },
          h("summary", {}, "Metrics, clipping"),
          options,
        ),
        formChoice,
      ),
    ),
    result,
    commands,
  );

  outputs.append(
    ...OUTPUTS.map((name) =>
      h(
        "label",
        { class: "none-box" },
        h("input", {
          type: "checkbox",
          checked: state.outputs.includes(name),
          onchange: (event) => {
            state.outputs = OUTPUTS.filter((of) => (of === name ? event.target.checked : state.outputs.includes(of)));
            refresh();
          },
        }),
        name,
      ),
    ),
  );
  let failed = null;
  context.whenReady(() => {
    if (failed?.passing) update();
  });
  state.guessed = guessed();
  if (!Object.keys(state.texts).length) await fillIn(state.parameters);
  const update = latest(evaluate, signal);
  buildPicker();
  build();
  refresh();

  // What is sent

  function loss() {
    return available.find(({ name }) => name === (state.loss ?? state.guessed));
  }

  function specOf(name) {
    const free = { shape: "", dtypes: role(name) === "target" ? ["float", "integer"] : ["float"] };
    return declared(name) ?? { name, summary: "", types: [loss().named_by_parameters ?? free] };
  }

  /** The inputs that are shown: those of the loss, then what was added to them. */
  function names() {
    const fixed = loss()
      .inputs.filter((input) => !input.optional && !input.name.includes("*"))
      .map((input) => input.name);
    const added = Object.keys(state.texts).filter((name) => !fixed.includes(name) && (isOpen() || declared(name)));
    return [...fixed, ...added];
  }

  function declared(name) {
    return loss().inputs.find(
      (input) => input.name === name || (input.name.endsWith(".*") && name.startsWith(input.name.slice(0, -1))),
    );
  }

  /** Whether the loss's parameters name its inputs. */
  function isOpen() {
    return (
      loss().batching === "composed" ||
      Boolean(loss().named_by_parameters) ||
      loss().inputs.some((input) => input.name.includes("*"))
    );
  }

  function arrayOf(name) {
    const file = arrays[state.files[name]];
    return file ? file.array : parse(state.texts[name] ?? "");
  }

  function guessed() {
    try {
      return guess(arrayOf("prediction"), arrayOf("target"));
    } catch {
      return state.guessed ?? "cross_entropy";
    }
  }

  function compose() {
    const inputs = {};
    const faults = {};
    for (const name of names()) {
      try {
        inputs[name] = typed(arrayOf(name), specOf(name));
        fields[name]?.show(inputs[name]);
      } catch (error) {
        if (!(error instanceof Unreadable || error instanceof RangeError)) throw error;
        faults[name] = error.message;
      }
    }
    const metricOptions = Object.fromEntries(Object.entries(state.metrics).filter(([, value]) => value !== undefined));
    const request = {
      loss: { name: loss().name, ...state.parameters },
      inputs,
      outputs: state.outputs,
      ...(state.outputs.includes("gradient") && Object.keys(state.gradient).length && { gradient: state.gradient }),
      ...(state.outputs.includes("metrics") && Object.keys(metricOptions).length && { metrics: metricOptions }),
    };
    return { request, faults };
  }

  // How it goes

  function refresh() {
    const before = loss();
    state.guessed = guessed();
    if (loss() !== before && state.loss === null) {
      state.parameters = {};
      state.metrics = {};
      buildParameters();
      buildOptions();
    }
    picker.options[0].textContent = `Guessed: ${state.guessed}`;
    toAddress();
    update();
  }

  async function evaluate(aborted) {
    const { request, faults } = compose();
    for (const [name, slot] of Object.entries(fields)) slot.fault(faults[name] ?? "");
    problem.hidden = true;
    failed = null;
    showForm(request);
    if (Object.keys(faults).length || !request.outputs.length)
      return stale(request.outputs.length ? "" : "Nothing is asked for.");
    current = {
      request,
      ...snippets(request, {
        url: new URL(".", location.href.split("#")[0]).href,
        form: sentAs(request),
        keyed: api.keyIsSet(),
      }),
    };
    showCommands();
    result.setAttribute("aria-busy", "true");
    try {
      const answer = await ask(api, request, sentAs(request), aborted);
      const [first, ...sections] = answered(answer, { theme, signal, hasClasses });
      verdict.replaceChildren(first);
      result.replaceChildren(...sections);
      for (const part of [verdict, result]) delete part.dataset.stale;
      result.dataset.answers = Number(result.dataset.answers ?? 0) + 1;
      const { loss: value } = answer;
      announce(typeof value === "number" ? `Loss ${context.plots.short(value)}` : "Answered");
    } catch (error) {
      if (!(error instanceof api.Problem)) throw error;
      failed = error;
      blame(error, request);
    } finally {
      result.removeAttribute("aria-busy");
    }
    return undefined;
  }

  /** How a request is sent: as it was chosen, else in binary where it is large. */
  function sentAs({ inputs }) {
    const size = Object.values(inputs).reduce((sum, { data }) => sum + data.length, 0);
    return state.form ?? (size > LARGE ? "safetensors" : "json");
  }

  function showForm(request) {
    const now = sentAs(request);
    if (formChoice.dataset.form === now) return;
    formChoice.dataset.form = now;
    formChoice.replaceChildren(
      choice(
        "sent-as",
        [
          ["json", "JSON"],
          ["safetensors", "safetensors"],
        ],
        now,
        (wanted) => {
          state.form = wanted;
          refresh();
        },
        null,
        "Sent as",
      ).element,
    );
  }

  /** Whether the second axis of an input counts classes. */
  function hasClasses(name) {
    const mode = state.parameters.mode ?? loss().parameters.mode?.default;
    return mode !== "binary" && Boolean(declared(name)?.types.some(({ shape }) => /^\(?N,? C\b/.test(shape)));
  }

  function stale(text) {
    for (const part of [verdict, result]) part.dataset.stale = "";
    problem.hidden = !text;
    problem.replaceChildren(h("p", {}, text));
  }

  /** A refusal goes to the input that it names first; what names none is said for all. */
  function blame(error, { inputs }) {
    stale("");
    const pointed = error.errors
      .map(({ pointer, detail }) => [/^\/inputs\/([^/]+)/.exec(pointer)?.[1], detail])
      .find(([name]) => name in fields);
    const at = (name) => error.message.search(new RegExp(`(^|[^\\w.])${name.replace(/[.*]/g, "\\$&")}($|[^\\w])`));
    const [named] = Object.keys(inputs)
      .filter((name) => at(name) >= 0)
      .sort((a, b) => at(a) - at(b));
    const about =
      pointed?.[0] ??
      (error.errors.some(({ pointer }) => /^\/(loss|metrics|gradient|outputs)/.test(pointer)) ? undefined : named);
    if (about) fields[about].fault(pointed?.[1] ?? error.message);
    else {
      problem.hidden = false;
      problem.replaceChildren(
        ...[
          h("p", {}, error.message),
          error.passing && h("p", { class: "small quiet" }, "It is asked again when the service takes work."),
          error.page && h("p", {}, h("a", { href: error.page }, error.title)),
        ].filter(Boolean),
      );
    }
    result.dataset.refused = Number(result.dataset.refused ?? 0) + 1;
  }

  // The inputs

  /** Replace the inputs by an example for the loss, which may be another one when its example arrives. */
  async function fillIn(set = {}) {
    const wanted = loss();
    const { inputs, parameters } = await exampleOf(wanted, { api, signal });
    if (loss() !== wanted) return;
    state.texts = { ...inputs };
    state.files = {};
    state.parameters = { ...parameters, ...set };
    state.pristine = true;
  }

  function rebuild() {
    build();
    refresh();
  }

  function build() {
    buildInputs();
    buildParameters();
    buildOptions();
  }

  function buildInputs() {
    fields = Object.fromEntries(names().map((name) => [name, slot(name)]));
    slots.replaceChildren(...Object.values(fields).map(({ element }) => element));
    const spare = loss()
      .inputs.filter((input) => input.optional && !names().includes(input.name))
      .map((input) => input.name);
    const add = (name) => {
      state.texts[name] = "";
      state.pristine = false;
      buildInputs();
      refresh();
      fields[name]?.focus();
    };
    const list = h(
      "select",
      { "aria-label": "Add an input", onchange: () => add(list.value) },
      h("option", { value: "" }, "Add an input …"),
      spare.map((name) => h("option", {}, name)),
    );
    const own = h("input", {
      type: "text",
      "aria-label": "Name of a further input",
      placeholder: "name",
      onkeydown: (event) => {
        if (event.key === "Enter" && own.value.trim()) add(own.value.trim());
      },
    });
    adding.replaceChildren(
      h("div", { class: "narrow" }, list),
      ...(isOpen()
        ? [
            h("div", { class: "narrow" }, own),
            h(
              "button",
              { type: "button", class: "plain", onclick: () => own.value.trim() && add(own.value.trim()) },
              icon("plus"),
              "Add",
            ),
          ]
        : []),
    );
  }

  /** One input: where it is from, what it holds, what is wrong with it. */
  function slot(name) {
    const spec = specOf(name);
    const id = `input-${name}`;
    const about = h("span", { class: "small quiet number" });
    const fault = h("p", { class: "small bad", id: `${id}-fault`, role: "alert" });
    const held = arrays[state.files[name]];
    const area = h("textarea", {
      id,
      rows: 6,
      spellcheck: "false",
      autocomplete: "off",
      "aria-describedby": `${id}-fault`,
      oninput: () => {
        state.texts[name] = area.value;
        state.pristine = false;
        refresh();
      },
    });
    area.value = state.texts[name] ?? "";
    const source =
      arrays.length > 0 &&
      h(
        "select",
        {
          "aria-label": `Where ${name} is from`,
          onchange: () => {
            if (source.value === "") delete state.files[name];
            else state.files[name] = Number(source.value);
            state.pristine = false;
            buildInputs();
            refresh();
            fields[name].focus();
          },
        },
        h("option", { value: "" }, "typed here"),
        arrays.map((entry, i) =>
          h(
            "option",
            { value: i },
            `${entry.label} · ${entry.array.shape.join(" × ")}${entry.array.dtype ? ` ${dtypeName(entry.array.dtype)}` : ""}`,
          ),
        ),
      );
    if (source) source.value = state.files[name] ?? "";
    const fixed = loss().inputs.some((input) => input.name === name && !input.optional);
    const remove =
      !fixed &&
      h(
        "button",
        {
          type: "button",
          class: "tiny",
          "aria-label": `Remove ${name}`,
          onclick: () => {
            delete state.texts[name];
            delete state.files[name];
            buildInputs();
            refresh();
          },
        },
        icon("close"),
      );
    return {
      element: h(
        "div",
        { class: "field" },
        h(
          "div",
          { class: "field-head" },
          h(
            held ? "span" : "label",
            { for: held ? null : id },
            h("span", { class: "mono" }, name),
            spec.types[0].shape &&
              h("span", { class: "quiet small mono" }, ` ${spec.types.map(({ shape }) => shape).join(" or ")}`),
          ),
          h("span", { class: "values" }, about, remove),
        ),
        source,
        !held && area,
        fault,
        spec.summary && h("p", { class: "about" }, inline(spec.summary)),
      ),
      show({ shape, dtype }) {
        about.textContent = `${shape.join(" × ") || "a number"} · ${dtypeName(dtype)}`;
      },
      fault(text) {
        if (fault.textContent !== text) fault.textContent = text;
        const control = held ? source : area;
        if (text) control.setAttribute("aria-invalid", "true");
        else control.removeAttribute("aria-invalid");
      },
      focus: () => (held ? source : area).focus(),
    };
  }

  // Files

  function over(event) {
    event.preventDefault();
    zone.dataset.over = "";
  }
  function out() {
    delete zone.dataset.over;
  }
  function dropped(event) {
    event.preventDefault();
    out();
    take(event.dataTransfer.files);
  }

  async function take(list) {
    fileProblem.textContent = "";
    const brought = [];
    for (const file of [...list]) {
      try {
        for (const entry of await read(file))
          brought.push({
            ...entry,
            label: `${file.name}${file.name.startsWith(`${entry.name}.`) ? "" : `: ${entry.name}`}`,
          });
      } catch (error) {
        if (!(error instanceof Unreadable)) throw error;
        fileProblem.textContent = `${file.name}: ${error.message}`;
      }
    }
    files.value = "";
    if (!brought.length || signal.aborted) return;
    if (state.pristine) state.texts = {};
    state.pristine = false;
    const first = arrays.length;
    arrays.push(...brought);
    assign(first);
    buildInputs();
    announce(`${brought.length} ${brought.length === 1 ? "array" : "arrays"} read`);
    refresh();
  }

  /** New arrays go where their names say, and else in order to the inputs that have nothing. */
  function assign(first) {
    const fresh = arrays.map((_, i) => i).slice(first);
    const wanted = names();
    for (const i of fresh) {
      const { name } = arrays[i];
      const to = arrays[i].role ?? (declared(name) ? name : role(name));
      if (wanted.includes(to) || declared(to)) {
        state.files[to] = i;
        state.texts[to] ??= "";
      }
    }
    const left = fresh.filter((i) => !Object.values(state.files).includes(i));
    for (const name of wanted)
      if (!(name in state.files) && !state.texts[name] && left.length) state.files[name] = left.shift();
  }

  // The loss and its options

  function buildPicker() {
    picker.append(
      h("option", { value: "" }, ""),
      ...FAMILY_NAMES.map((family) => [family, available.filter((of) => familyOf(of.task) === family)])
        .filter(([, of]) => of.length)
        .map(([family, of]) =>
          h(
            "optgroup",
            { label: family },
            of.map(({ name }) => h("option", {}, name)),
          ),
        ),
    );
    picker.value = state.loss ?? "";
  }

  async function chosen() {
    state.loss = picker.value || null;
    state.parameters = {};
    state.metrics = {};
    if (state.pristine) await fillIn();
    rebuild();
  }

  function buildParameters() {
    const { reduction } = loss().parameters;
    const entries = [...(reduction?.enum ? [["reduction", reduction]] : []), ...settable(loss())];
    const made = entries.map(([name, schema]) =>
      field(loss(), name, schema, state.parameters[name], (value) => {
        if (value === undefined) delete state.parameters[name];
        else state.parameters[name] = value;
        refresh();
      }),
    );
    const plain = made.filter(
      ({ kind }, i) => (kind !== "text" && !RARE.has(entries[i][0])) || entries[i][0] in state.parameters,
    );
    const rare = made.filter((entry) => !plain.includes(entry));
    form.replaceChildren(...plain.map(({ element }) => element));
    if (rare.length)
      form.append(
        h(
          "details",
          { class: "rare" },
          h("summary", {}, "More parameters"),
          h(
            "div",
            { class: "fields" },
            rare.map(({ element }) => element),
          ),
        ),
      );
  }

  async function buildOptions() {
    if (!options.parentElement.open) return;
    let schemas;
    try {
      ({
        components: { schemas },
      } = await api.catalogue("/openapi.json"));
    } catch (error) {
      if (!(error instanceof api.Problem)) throw error;
      options.replaceChildren(h("p", { class: "small bad" }, error.message));
      return;
    }
    const { task } = loss();
    const known = metrics.filter((metric) => metric.task === task);
    const byDefault = known.filter((metric) => metric.default).map(({ name }) => name);
    const asked = new Set(
      (state.metrics.names ?? byDefault).flatMap((name) => (name === "default" ? byDefault : [name])),
    );
    const set = (holder, name) => (value) => {
      if (value === undefined || value === null) delete holder[name];
      else holder[name] = value;
      refresh();
    };
    const boxes = known.map(({ name, summary }) =>
      h(
        "label",
        { class: "none-box", title: summary },
        h("input", {
          type: "checkbox",
          checked: asked.has(name),
          onchange: (event) => {
            if (event.target.checked) asked.add(name);
            else asked.delete(name);
            const same = asked.size === byDefault.length && byDefault.every((of) => asked.has(of));
            set(
              state.metrics,
              "names",
            )(same ? undefined : known.map((metric) => metric.name).filter((of) => asked.has(of)));
          },
        }),
        name,
      ),
    );
    const applying = [...new Set(known.flatMap((metric) => metric.options))].filter(
      (name) => name in schemas.MetricOptions.properties && !METRICS_ALONE.has(name),
    );
    const group = (holder, name, schema, prefix) =>
      field({ name: prefix }, `${prefix}.${name}`, schema, holder[name], set(holder, name)).element;
    options.replaceChildren(
      ...(boxes.length
        ? [h("fieldset", { class: "checks" }, h("legend", { class: "field-title" }, "Metrics"), boxes)]
        : []),
      ...applying.map((name) => group(state.metrics, name, schemas.MetricOptions.properties[name], "metrics")),
      ...GRADIENT_OPTIONS.map((name) =>
        group(state.gradient, name, schemas.GradientOptions.properties[name], "gradient"),
      ),
    );
  }

  // The same from elsewhere

  function showCommands() {
    const { text, needsFile } = current[state.language];
    const pre = h(
      "pre",
      { class: "request", tabindex: 0, role: "region", "aria-label": `The request in ${LANGUAGES[state.language]}` },
      h("code", { id: "command" }, text),
    );
    const copy = h(
      "button",
      {
        type: "button",
        class: "plain",
        onclick: async () => {
          await navigator.clipboard.writeText(text);
          copy.lastChild.textContent = "Copied";
          announce("Copied");
        },
      },
      icon("copy"),
      h("span", {}, "Copy"),
    );
    const save = h(
      "button",
      {
        type: "button",
        class: "plain",
        onclick: () => {
          const link = h("a", { href: URL.createObjectURL(asFile(current.request)), download: FILE });
          link.click();
          setTimeout(() => URL.revokeObjectURL(link.href), 1000);
        },
      },
      icon("save"),
      h("span", {}, `Save ${FILE}`),
    );
    if (!commands.children.length) {
      const pick = choice(
        "language",
        Object.entries(LANGUAGES),
        state.language,
        (wanted) => {
          state.language = wanted;
          showCommands();
        },
        null,
        "Language",
      );
      commands.append(
        h("div", { class: "row spread" }, h("h2", {}, "The same from elsewhere"), pick.group),
        h("div", { class: "more" }),
      );
    }
    commands.lastChild.replaceChildren(
      pre,
      h(
        "p",
        { class: "row" },
        copy,
        needsFile && save,
        needsFile &&
          h("span", { class: "small quiet" }, "The numbers are in the file, which the command reads where it is run."),
        !needsFile && state.language === "python" && h("span", { class: "small quiet" }, "With pip install lossd."),
      ),
    );
  }

  // The address

  function toAddress() {
    const query = new URLSearchParams();
    if (state.loss) query.set("loss", state.loss);
    if (state.form) query.set("as", state.form);
    if (state.outputs.length < OUTPUTS.length) query.set("outputs", state.outputs.join(","));
    for (const [prefix, holder] of [
      ["p", state.parameters],
      ["m", state.metrics],
      ["g", state.gradient],
    ])
      for (const [name, value] of Object.entries(holder)) query.set(`${prefix}.${name}`, JSON.stringify(value));
    const texts = Object.entries(state.texts).filter(([name]) => !(name in state.files));
    if (!state.pristine && texts.reduce((sum, [, text]) => sum + text.length, 0) < SHARED_LENGTH)
      for (const [name, text] of texts) query.set(`in.${name}`, text);
    context.navigate(context.path, query, { replace: true });
  }
}

function fromAddress(query, available) {
  const state = {
    loss: null,
    guessed: null,
    parameters: {},
    metrics: {},
    gradient: {},
    texts: {},
    files: {},
    outputs: OUTPUTS,
    form: null,
    language: "curl",
    pristine: false,
  };
  if (available.some(({ name }) => name === query.get("loss"))) state.loss = query.get("loss");
  if (["json", "safetensors"].includes(query.get("as"))) state.form = query.get("as");
  if (query.has("outputs")) state.outputs = OUTPUTS.filter((name) => query.get("outputs").split(",").includes(name));
  const holders = { p: state.parameters, m: state.metrics, g: state.gradient };
  for (const [key, text] of query) {
    const [prefix, name] = [key.slice(0, key.indexOf(".")), key.slice(key.indexOf(".") + 1)];
    if (prefix === "in") state.texts[name] = text;
    else if (holders[prefix])
      try {
        holders[prefix][name] = JSON.parse(text);
      } catch {
        /* somebody cut the address */
      }
  }
  return state;
}
