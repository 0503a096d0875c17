/** One loss: its formula, its curves, and what is known of it. */

import { choice, field, RARE, settable, slider } from "../controls.js";
import { byRows, defaultsOf, draw, queryOf, requestsOf } from "../curve.js";
import { inline, prose, reference, sections } from "../documentation.js";
import { h, icon } from "../dom.js";
import { formula } from "../formula.js";
import { latest } from "../latest.js";
import { beside } from "../presets.js";
import { sketch } from "../sketches.js";
import { curveName, taskName } from "../words.js";

const COLORS = 6;
const MOST = 8;
const SHOWN_ROWS = 5;

export async function render(root, context) {
  const {
    api,
    parameters: { name },
    href,
    title,
  } = context;
  const losses = await api.losses();
  const loss =
    losses.find((entry) => entry.name === name) ?? (await api.catalogue(`/v1/losses/${encodeURIComponent(name)}`));
  title(loss.name);
  const equation = h("div", { class: "formula" });
  root.append(
    h(
      "header",
      { class: "title" },
      h("a", { class: "back", href: href("/losses") }, icon("back"), "All losses"),
      h(
        "div",
        { class: "row" },
        h("h1", { class: "mono" }, loss.name),
        h("a", { class: "chip", href: href("/losses", { task: loss.task }) }, taskName(loss.task)),
      ),
      h("p", { class: "lead" }, inline(loss.summary)),
      loss.formula && equation,
    ),
  );
  if (loss.formula) await formula(equation, loss.formula);
  if (!loss.available) root.append(h("div", { class: "notice" }, h("p", {}, loss.unavailable_because)));
  const { axes } = loss;
  if (loss.available && axes.length) await curves(root, context, loss, losses, axes);
  else
    root.append(
      h("p", { class: "quiet" }, "It depends on more than one number can show, so there is no curve of it here."),
    );
  root.append(documented(loss));
}

// The curves

async function curves(root, context, loss, losses, axes) {
  const { api, plots, signal, announce } = context;
  const state = read(context.query, loss, axes);
  const around = { results: [], at: null, left: 0 };
  let marks = new Map(); // what puts a fault beside a parameter's field, by its name

  const legend = h("ul", { class: "legend" });
  const tip = h("div", { class: "tip number", hidden: true, "aria-hidden": "true" });
  const about = h("p", { class: "small quiet" });
  const problem = h("div", { class: "notice", role: "alert", hidden: true });
  const [upper, lower] = [h("div", { class: "plot" }), h("div", { class: "plot" })];
  const stack = h(
    "div",
    {
      class: "plots",
      role: "slider",
      tabindex: 0,
      "aria-label": "Read the curves off; arrow keys move along x",
      "aria-valuenow": 0,
      onkeydown: step,
    },
    upper,
    lower,
    tip,
  );
  const form = h("div", { class: "fields" });
  const held = h("div", { class: "fields" });
  const add = h("select", {
    "aria-label": "Compare with",
    onchange: () => {
      compare({ name: add.value, parameters: {} });
      add.value = "";
    },
  });
  const keep = h(
    "button",
    {
      type: "button",
      class: "plain",
      onclick: () => compare({ name: loss.name, parameters: { ...state.parameters } }),
    },
    icon("plus"),
    "Keep this curve",
  );
  const reset = h("button", { type: "button", class: "plain", onclick: startOver }, icon("reset"), "As it was");
  const save = h(
    "button",
    { type: "button", class: "plain", onclick: saved },
    icon("save"),
    h("span", {}, "Save as SVG"),
  );
  const table = h("details", { ontoggle: tabulate }, h("summary", {}, "The numbers"));
  const asked = h("details", { ontoggle: showRequest }, h("summary", {}, "The request"));

  root.append(
    h(
      "div",
      { class: "board" },
      h(
        "section",
        { class: "card drawing", "aria-label": "Curves" },
        h("div", { class: "legend-row" }, legend, axisChoice()),
        problem,
        stack,
        h("div", { class: "row spread" }, about, save),
      ),
      h(
        "section",
        { class: "card side", "aria-label": "Parameters" },
        form,
        held,
        h(
          "div",
          { class: "field" },
          h("span", { class: "field-title" }, "Compare"),
          add,
          h("div", { class: "row tight" }, keep, reset),
        ),
      ),
    ),
    h("div", { class: "card more" }, table, asked),
  );

  const options = { link: `${loss.name}-${Math.random()}`, onCursor: readOff, signal, xLabel: () => state.axis.label };
  const lossPlot = await plots.curves(upper, {
    ...options,
    xLabel: () => "",
    yLabel: () => "loss",
    height: () => (innerWidth < 640 ? 230 : 320),
  });
  const slopePlot = await plots.curves(lower, {
    ...options,
    onCursor: undefined,
    height: () => (innerWidth < 640 ? 190 : 220),
    yLabel: () => "gradient",
  });
  const update = latest(evaluate, signal);
  let failed = null;
  context.whenReady(() => {
    if (failed?.passing) update();
  });
  buildForm();
  buildHeld();
  refresh();

  /** All curves of the plot, the loss's own first. */
  function all() {
    const known = state.others.map(({ name, parameters }) => ({
      loss: losses.find((entry) => entry.name === name),
      parameters,
    }));
    return [{ loss, parameters: state.parameters }, ...known].map((curve, i) => ({
      ...curve,
      given: state.given,
      axis: curve.loss.axes.find((axis) => axis.name === state.axis.name),
      label: curveName(curve.loss.name, curve.parameters),
      color: `curve-${(i % COLORS) + 1}`,
    }));
  }

  function refresh() {
    write(context, loss, state, axes);
    fillCompare();
    update();
  }

  async function evaluate(aborted) {
    const drawn = async (curve) => ({ ...curve, ...(await draw(curve, { api, signal: aborted })) });
    const [own, ...others] = all().map(drawn);
    for (const other of others)
      other.catch(() => {
        /* where it fails, so does the wait for all of them */
      });
    try {
      if (!around.results.length) {
        around.results = [await own];
        show(); // the others join it as soon as they are there
      }
      around.results = await Promise.all([own, ...others]);
      fail(null);
    } catch (error) {
      if (!(error instanceof api.Problem)) throw error;
      fail(error);
      return;
    }
    show();
    stack.dataset.drawn = Number(stack.dataset.drawn ?? 0) + 1;
  }

  /** Say why the curves are not what is set: beside the parameter that is refused, and above them. */
  function fail(error) {
    failed = error;
    problem.hidden = !error;
    stack.toggleAttribute("data-stale", Boolean(error));
    const refused = new Map(
      (error?.errors ?? []).map(({ pointer, detail }) => [/^\/loss\/([^/]+)/.exec(pointer)?.[1], detail]),
    );
    for (const [name, mark] of marks) mark(refused.get(name) ?? "");
    if (!error) return;
    const instead =
      around.results.length > 0 && h("p", { class: "small quiet" }, "The curves are the last that were answered.");
    const type = error.page && h("p", {}, h("a", { href: error.page }, error.title));
    problem.replaceChildren(
      ...[
        h("p", {}, error.message),
        instead,
        error.passing && h("p", { class: "small quiet" }, "The curves are drawn when the service takes work again."),
        type,
      ].filter(Boolean),
    );
  }

  function show() {
    const { results } = around;
    // Rows are drawn finer than single requests: what shares a plot shares the points of the finest.
    const finest = results.reduce((best, result) => (result.x.length > best.length ? result.x : best), results[0].x);
    const look = (result, i) => ({
      color: result.color,
      width: i ? 1.75 : 3,
      dash: result.loss === loss ? undefined : [6, 4],
      fill: i === 0,
    });
    around.x = finest;
    around.lines = results.map((result) => ({
      loss: between(result.x, result.values, finest),
      slope: comparable(result, results[0]) ? between(result.x, result.slope, finest) : null,
    }));
    lossPlot.draw({
      x: finest,
      series: results.map((result, i) => ({ ...look(result, i), values: around.lines[i].loss })),
    });
    const sloped = results.map((result, i) => [result, i]).filter(([, i]) => around.lines[i].slope);
    lower.hidden = !sloped.length;
    if (sloped.length)
      slopePlot.draw({
        x: finest,
        series: sloped.map(([result, i]) => ({ ...look(result, i), fill: false, values: around.lines[i].slope })),
      });
    stack.setAttribute("aria-valuemax", finest.length - 1);
    listed();
    tabulate();
    showRequest();
  }

  function listed() {
    legend.replaceChildren(
      ...around.results.map((result, i) =>
        h(
          "li",
          { style: { "--color": `var(--${result.color})` } },
          h("span", { class: result.loss === loss ? "swatch" : "swatch dashed" }),
          i
            ? h("a", { href: context.href(`/losses/${result.loss.name}`, queryOf(result.parameters)) }, result.label)
            : h("strong", {}, result.label),
          i > 0 &&
            h(
              "button",
              { type: "button", class: "tiny", "aria-label": `Remove ${result.label}`, onclick: () => remove(i - 1) },
              icon("close"),
            ),
        ),
      ),
    );
    const [own, ...others] = around.results;
    const apart = others
      .filter((result) => result.slope && !comparable(result, own))
      .map(({ label, subject }) => ` That of ${label} is with respect to ${subject} and is not drawn here.`);
    about.textContent = own.subject ? `The gradient is with respect to ${own.subject}.${apart.join("")}` : "";
    readOff(around.at);
  }

  function readOff(index, left) {
    around.at = index;
    if (left !== undefined) around.left = left;
    tip.hidden = index === null;
    if (index === null || !around.x) return;
    const { x, results, lines } = around;
    const rows = results.map((result, i) =>
      h(
        "tr",
        { style: { "--color": `var(--${result.color})` } },
        h("td", {}, h("span", { class: "swatch" }), result.label),
        h("td", {}, plots.short(lines[i].loss[index])),
        lines[i].slope && h("td", {}, plots.short(lines[i].slope[index])),
      ),
    );
    tip.replaceChildren(
      ...[sketch(state.axis, x[index], state.given)].filter(Boolean),
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", {}, `x = ${plots.short(x[index])}`),
            h("th", {}, "loss"),
            !lower.hidden && h("th", {}, "gradient"),
          ),
        ),
        h("tbody", {}, rows),
      ),
    );
    const width = tip.offsetWidth;
    const beside = around.left + 18;
    tip.style.setProperty(
      "left",
      `${Math.max(0, beside + width > stack.clientWidth ? around.left - width - 18 : beside)}px`,
    );
    stack.setAttribute("aria-valuenow", index);
    stack.setAttribute(
      "aria-valuetext",
      [
        `x ${plots.short(x[index])}`,
        ...results.map((result, i) => `${result.label} ${plots.short(lines[i].loss[index])}`),
      ].join("; "),
    );
  }

  function step(event) {
    const last = around.x.length - 1;
    const large = Math.ceil(last / 10);
    const moves = {
      ArrowRight: 1,
      ArrowUp: 1,
      ArrowLeft: -1,
      ArrowDown: -1,
      PageUp: large,
      PageDown: -large,
      Home: -last,
      End: last,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const index = Math.min(last, Math.max(0, (around.at ?? (last / 2) | 0) + moves[event.key]));
    lossPlot.point(index);
  }

  /** The service's own picture of the same lines. */
  async function saved() {
    save.disabled = true;
    try {
      const picture = await api.request(`/v1/losses/${loss.name}/curve.svg?${asPicture(loss, state)}`, { signal });
      const link = h("a", { href: URL.createObjectURL(await picture.blob()), download: `${loss.name}.svg` });
      link.click();
      URL.revokeObjectURL(link.href);
    } catch (error) {
      if (!(error instanceof api.Problem)) throw error;
      problem.hidden = false;
      problem.replaceChildren(h("p", {}, error.message));
    }
    save.disabled = false;
  }

  function compare(curve) {
    state.others.push(curve);
    announce(`${curveName(curve.name, curve.parameters)} is drawn beside it`);
    refresh();
  }

  function remove(i) {
    state.others.splice(i, 1);
    refresh();
    add.focus();
  }

  function startOver() {
    Object.assign(state, read(new URLSearchParams(), loss, axes));
    buildForm();
    buildHeld();
    lossPlot.forget();
    slopePlot.forget();
    refresh();
  }

  function fillCompare() {
    const fitting = losses.filter(
      (entry) =>
        entry.available &&
        entry.axes.some((axis) => axis.name === state.axis.name && !Object.keys(axis.start).length) &&
        sameKind(entry, loss),
    );
    const full = state.others.length >= MOST - 1;
    const drawn = (entry) =>
      entry === loss ||
      state.others.some(({ name, parameters }) => name === entry.name && !Object.keys(parameters).length);
    add.replaceChildren(
      h("option", { value: "" }, full ? `${MOST} curves, as many as fit: remove one first` : "with another loss …"),
      ...fitting.filter((entry) => !drawn(entry)).map((entry) => h("option", {}, entry.name)),
    );
    add.disabled = keep.disabled = full;
  }

  function axisChoice() {
    if (axes.length < 2) return null;
    return choice(
      "axis",
      axes.map((axis) => [axis.name, axis.name.replaceAll("_", " ")]),
      state.axis.name,
      (wanted) => {
        state.axis = axes.find((axis) => axis.name === wanted);
        state.given = defaultsOf(state.axis);
        state.others = state.others.filter(({ name }) =>
          losses.find((entry) => entry.name === name).axes.some((axis) => axis.name === wanted),
        );
        buildHeld();
        lossPlot.forget();
        slopePlot.forget();
        refresh();
      },
      null,
      "What the curves are drawn along",
    ).group;
  }

  function buildForm() {
    const { axis } = state;
    const shown = settable(loss, axis.sets);
    const fields = shown.map(([name, schema]) =>
      field(loss, name, schema, state.parameters[name] ?? axis.start[name], (value) => {
        if (value === undefined) delete state.parameters[name];
        else state.parameters[name] = value;
        refresh();
      }),
    );
    const lists = fields.filter(({ kind }, i) => kind === "text" && !(shown[i][0] in axis.start));
    const rare = fields.filter((entry, i) => lists.includes(entry) || RARE.has(shown[i][0]));
    const plain = fields.filter((entry) => !rare.includes(entry));
    marks = new Map(shown.map(([name], i) => [name, fields[i].mark]));
    form.replaceChildren(...plain.map(({ element }) => element));
    if (rare.length)
      form.append(
        h(
          "details",
          { class: "rare", open: !plain.length },
          h("summary", {}, plain.length ? "More parameters" : "Parameters"),
          h(
            "div",
            { class: "fields" },
            rare.map(({ element }) => element),
          ),
        ),
      );
    if (!fields.length) form.append(h("p", { class: "quiet small" }, "This loss has no parameters."));
  }

  function buildHeld() {
    const entries = Object.entries(state.axis.given);
    held.replaceChildren();
    if (entries.length) held.append(h("span", { class: "field-title" }, "Drawn where"));
    for (const [name, spec] of entries) {
      const set = (changed) => {
        state.given[name] = Number(changed);
        refresh();
      };
      const of = spec.choices
        ? choice(
            `at-${name}`,
            Object.entries(spec.choices).sort(([a], [b]) => b - a),
            state.given[name],
            set,
            null,
            spec.label,
          )
        : slider(`at-${name}`, { ...spec, value: state.given[name] }, set);
      held.append(of.element);
    }
  }

  function tabulate() {
    if (!table.open || !around.lines) return;
    const { x, lines, results } = around;
    const every = Math.ceil(x.length / 41);
    const rows = x.map((_, i) => i).filter((i) => i % every === 0);
    const heads = results.flatMap((result, i) => [
      h("th", { class: "number", scope: "col" }, result.label),
      lines[i].slope && h("th", { class: "number", scope: "col" }, "gradient"),
    ]);
    table.replaceChildren(
      table.firstChild,
      h(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": "The curves as numbers" },
        h(
          "table",
          { class: "numbers" },
          h("caption", { class: "unseen" }, `Loss and gradient by ${state.axis.label}`),
          h("thead", {}, h("tr", {}, h("th", { class: "number", scope: "col" }, "x"), heads)),
          h(
            "tbody",
            {},
            rows.map((i) =>
              h(
                "tr",
                {},
                h("th", { class: "number", scope: "row" }, plots.short(x[i])),
                lines.map((line) => [
                  h("td", { class: "number" }, plots.short(line.loss[i])),
                  line.slope && h("td", { class: "number" }, plots.short(line.slope[i])),
                ]),
              ),
            ),
          ),
        ),
      ),
    );
  }

  async function showRequest() {
    if (!asked.open) return;
    const [own] = around.results;
    const many = byRows(loss);
    const { first, count } = await requestsOf(own, { api, signal, points: many ? SHOWN_ROWS : undefined });
    if (around.results[0] !== own) return;
    const command = `curl -s ${new URL("v1/evaluate", location.href)} -H 'Content-Type: application/json' -d '${JSON.stringify(first)}'`;
    const copy = h(
      "button",
      {
        type: "button",
        class: "plain",
        onclick: async () => {
          await navigator.clipboard.writeText(command);
          announce("Copied");
          copy.lastChild.textContent = "Copied";
        },
      },
      icon("copy"),
      h("span", {}, "Copy as curl"),
    );
    asked.replaceChildren(
      asked.firstChild,
      h(
        "p",
        { class: "small quiet" },
        many
          ? `One request has all points as rows, here ${SHOWN_ROWS} of ${own.x.length}.`
          : `Each of the ${count} points is a request, because the samples of a request interact. The first:`,
      ),
      h(
        "pre",
        { class: "request", tabindex: 0, role: "region", "aria-label": "The request's body" },
        h("code", {}, JSON.stringify(first)),
      ),
      h("p", { class: "row" }, copy),
    );
  }
}

/** Whether the gradients of two curves may share a plot: with respect to a score and to its probability they are not alike. */
function comparable(one, own) {
  const kind = (subject) => /log-probability|probability/.exec(subject)?.[0] ?? "other";
  return Boolean(one.slope) && (!own.subject || kind(one.subject) === kind(own.subject));
}

/** Whether two losses may share a plot: an "offset" of boxes is not another's, and a "score" of one kind not the other's. */
function sameKind(a, b) {
  const along = (loss) => loss.axes.map((axis) => axis.label.split(":")[0]);
  return along(a).some((label) => along(b).includes(label)) || a.task === b.task;
}

/** A line's value at other points of x, by straight lines between its own. */
function between(x, y, wanted) {
  if (x === wanted || x.length === wanted.length) return y;
  let i = 0;
  return wanted.map((at) => {
    while (i < x.length - 2 && x[i + 1] < at) i += 1;
    return y[i] + ((y[i + 1] - y[i]) * (at - x[i])) / (x[i + 1] - x[i]);
  });
}

// The address

const GIVEN = "at.";

function read(query, loss, axes) {
  const axis = axes.find(({ name }) => name === query.get("x")) ?? axes[0];
  const given = defaultsOf(axis);
  const parameters = {};
  for (const [name, text] of query) {
    if (name.startsWith(GIVEN) && name.slice(GIVEN.length) in given) {
      if (text.trim() && Number.isFinite(Number(text))) given[name.slice(GIVEN.length)] = Number(text);
    } else if (name in loss.parameters && fits(parsed(text), loss.parameters[name])) parameters[name] = parsed(text);
  }
  const others = query.has("with")
    ? query.getAll("with").filter(Boolean).map(unworded)
    : beside(loss.name).map((curve) => ({ ...curve, parameters: { ...curve.parameters } }));
  return { axis, given, parameters, others };
}

function write({ navigate, path }, loss, { axis, given, parameters, others }, axes) {
  const query = new URLSearchParams(queryOf(parameters));
  if (axis !== axes[0]) query.set("x", axis.name);
  for (const [name, value] of Object.entries(defaultsOf(axis)))
    if (given[name] !== value) query.set(GIVEN + name, given[name]);
  if (JSON.stringify(others) !== JSON.stringify(beside(loss.name)))
    for (const curve of others.length ? others : [null]) query.append("with", curve ? worded(curve) : "");
  navigate(path, query, { replace: true });
}

const worded = ({ name, parameters }) => [name, ...queryOf(parameters).map((pair) => pair.join("="))].join(";");

function unworded(text) {
  const [name, ...pairs] = text.split(";");
  return {
    name,
    parameters: Object.fromEntries(
      pairs.map((pair) => [pair.slice(0, pair.indexOf("=")), parsed(pair.slice(pair.indexOf("=") + 1))]),
    ),
  };
}

/** Whether a value is of a kind that a parameter has, so that its field can show it; what it may be, the service says. */
function fits(value, schema) {
  const kind = value === null ? "null" : Array.isArray(value) ? "array" : typeof value;
  const kinds = (schema.anyOf ?? [schema]).flatMap(
    (arm) => arm.type ?? (arm.enum ? arm.enum.map((entry) => typeof entry) : [kind]),
  );
  return kinds.includes(kind) || (kind === "number" && kinds.includes("integer"));
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** The query of /v1/losses/{name}/curve.svg: values of one parameter as lines of their own, and other losses as they are. */
function asPicture(loss, { axis, given, parameters, others }) {
  const query = new URLSearchParams([
    ["x", axis.name],
    ...queryOf({ ...axis.start, ...parameters }),
    ...Object.entries(given).map(([name, value]) => [GIVEN + name, value]),
  ]);
  const own = others.filter(({ name }) => name === loss.name).flatMap((curve) => queryOf(curve.parameters));
  const [varied] = own[0] ?? [];
  if (varied && !query.has(varied)) query.append(...queryOf({ [varied]: loss.parameters[varied].default })[0]);
  for (const [name, value] of own)
    if (name === varied && !query.getAll(name).includes(value)) query.append(name, value);
  for (const { name, parameters: set } of others)
    if (name !== loss.name && !Object.keys(set).length) query.append("with", name);
  return query;
}

// What is known of it

function documented(loss) {
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
      h("td", {}, inline(input.summary), input.differentiable && h("span", { class: "chip" }, "has a gradient")),
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
  const table = (heads, rows) =>
    h(
      "div",
      { class: "scroll" },
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
      h("h2", {}, "What it is"),
      prose(parts[""]),
      parts.Returns && [h("h3", {}, "It returns"), prose(parts.Returns)],
      parts.Gradient && [h("h3", {}, "Its gradient"), prose(parts.Gradient)],
      loss.references.length > 0 && [
        h("h3", {}, "References"),
        h(
          "ul",
          { class: "references" },
          loss.references.map((text) => h("li", {}, reference(text))),
        ),
      ],
    ),
    h(
      "section",
      { class: "card" },
      h("h2", {}, "What it takes"),
      table(["Input", "Shape", ""], inputs),
      parameters.length > 0 && table(["Parameter", "Default", ""], parameters),
    ),
  );
}
