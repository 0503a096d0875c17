/** Two parameters of a linear model: the loss over them, and how gradient descent walks down with each of several losses. */

import { contour, leveled, paint } from "../contours.js";
import { choice, field, RARE, settable, slider } from "../controls.js";
import { h, icon, svg } from "../dom.js";
import { rgb } from "../heat.js";
import { latest } from "../latest.js";
import { descend, fitting, MODELS, spaced, surface } from "../linear.js";
import { curveName } from "../words.js";

const GRID = 49;
const LEVELS = 13;
const SIZE = 100;
const COLORS = 6;
const MOST = { losses: 4, points: 60, steps: 200 };
const KEPT = 60;
const DOUBLE_MS = 400;
const DOUBLE_PX = 6;

export async function render(root, context) {
  const { api, plots, theme, signal, announce } = context;
  const losses = await api.losses();
  const state = fromAddress(context.query, losses);
  const kept = new Map(); // surfaces and paths by what they are of

  const overlay = svg("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const canvas = h("canvas", { "aria-hidden": "true" });
  const handle = h("button", {
    type: "button",
    class: "handle",
    role: "application",
    "aria-roledescription": "place",
    onkeydown: moveStart,
  });
  const land = h(
    "div",
    { class: "land", onpointerdown: placeStart },
    h("div", { class: "ground" }, canvas),
    overlay,
    handle,
  );
  const lines = svg("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const dots = h("div", {
    class: "dots",
    role: "group",
    "aria-label": "Points; arrow keys move one, Page Up and Page Down choose another, Delete removes it",
  });
  const field_ = h("div", { class: "land data", onpointerdown: addOrDrag }, lines, dots);
  const [landTicks, dataTicks] = [
    h("div", { class: "ticks", "aria-hidden": "true" }),
    h("div", { class: "ticks", "aria-hidden": "true" }),
  ];
  const legend = h("ul", { class: "legend paths" });
  const add = h("select", {
    "aria-label": "Add a loss",
    onchange: () => {
      state.losses.push({ name: add.value, parameters: {} });
      state.shown = state.losses.length - 1;
      rebuild();
    },
  });
  const form = h("div", { class: "fields" });
  const steering = h("div", { class: "fields" });
  const table = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Where each path leads" });
  const problem = h("div", { class: "notice", role: "alert", hidden: true });
  const converging = h("div", { class: "plot" });
  const modelChoice = h("div", { class: "row" });
  const text = h("textarea", {
    rows: 8,
    spellcheck: "false",
    "aria-label": "The points, one a line",
    oninput: typedPoints,
  });
  const best = h("p", { class: "small quiet number", id: "best" });
  const around = h("details", {}, h("summary", {}, "The points as text"), h("p", { class: "small quiet" }), text);
  const grid = h("details", { ontoggle: tabulateGrid }, h("summary", {}, "The surface as numbers"));

  root.append(
    h(
      "header",
      { class: "title" },
      h("h1", {}, "Landscape"),
      h(
        "p",
        { class: "lead" },
        "Two parameters, a few points, several losses: each makes another landscape of them, and another way down.",
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
          { class: "card more", "aria-label": "Points and landscape" },
          h("div", { class: "row spread" }, modelChoice),
          legend,
          problem,
          h(
            "div",
            { class: "lands" },
            h(
              "figure",
              {},
              h("div", { class: "framed" }, field_, dataTicks),
              h(
                "figcaption",
                { class: "small quiet" },
                "Click to add a point, drag to move it, double-click to take it away. ",
                h(
                  "button",
                  { type: "button", class: "link", onclick: () => appended({ x: 0, y: 0 }) },
                  "Add one in the middle",
                ),
                " to move it by arrow keys.",
              ),
            ),
            h(
              "figure",
              {},
              h("div", { class: "framed" }, land, landTicks),
              h(
                "figcaption",
                { class: "small quiet" },
                "Drag the circle, or click, to start elsewhere. The cross is the lowest point of the grid.",
              ),
            ),
          ),
        ),
        h(
          "section",
          { class: "card more", "aria-label": "Convergence" },
          h("h2", {}, "Loss, step by step"),
          converging,
          table,
        ),
      ),
      h(
        "section",
        { class: "card side", "aria-label": "Losses and steps" },
        steering,
        h("div", { class: "field" }, h("span", { class: "field-title" }, "Losses"), add),
        form,
      ),
    ),
    h("div", { class: "card more" }, best, around, grid),
  );

  const plot = await plots.curves(converging, {
    height: () => (innerWidth < 640 ? 220 : 260),
    xLabel: () => "step",
    yLabel: () => "loss",
    link: "landscape",
    log: true,
    signal,
  });
  const update = latest(evaluate, signal);
  let failed = null;
  context.whenReady(() => {
    if (failed?.passing) update();
  });
  theme.onChange(drawSurface, signal);

  const model = () => MODELS[state.model];
  const lossOf = ({ name }) => losses.find((loss) => loss.name === name);
  const colorOf = (i) => `curve-${(i % COLORS) + 1}`;

  function rebuild() {
    buildModel();
    buildSteering();
    buildLegend();
    buildForm();
    ticks(landTicks, model().spans, model().parameters);
    ticks(dataTicks, [model().view.x, model().view.y], ["x", "y"]);
    around.children[1].textContent = state.model === "line" ? "x, y" : "x, y, class (0 or 1)";
    text.value = asText(state.points);
    drawPoints();
    refresh();
  }

  function refresh() {
    toAddress();
    drawStart();
    update();
  }

  // What is asked

  function keep(key, make) {
    const found = kept.get(key) ?? make();
    kept.delete(key);
    kept.set(key, found);
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
    return found;
  }

  async function evaluate(aborted) {
    if (!state.points.length) return;
    const tasks = state.losses.map(({ name, parameters }) => ({
      model: model(),
      loss: lossOf({ name }),
      parameters,
      points: state.points,
      rate: state.rate,
    }));
    const keys = tasks.map(({ loss, parameters, points }) =>
      JSON.stringify([state.model, loss.name, parameters, points]),
    );
    const paths = tasks.map(({ rate }, i) =>
      keep(`${keys[i]} ${rate} ${state.start}`, () => [{ at: state.start, loss: null }]),
    );
    const shown = JSON.stringify([state.model, state.losses, state.points]);
    for (const part of [land, converging, table]) part.toggleAttribute("data-stale", part.dataset.of !== shown);
    let drawing = 0;
    const progress = () => {
      drawing ||= requestAnimationFrame(() => {
        drawing = 0;
        if (!aborted.aborted) drawPaths(paths);
      });
    };
    try {
      const top = keep(keys[state.shown], () => ({}));
      top.values ?? Object.assign(top, await surface(api, tasks[state.shown], GRID, aborted));
      state.surface = top;
      drawSurface();
      await Promise.all(tasks.map((task, i) => descend(api, task, paths[i], state.steps, aborted, progress)));
      problem.hidden = true;
      failed = null;
    } catch (error) {
      if (!(error instanceof api.Problem)) throw error;
      failed = error;
      problem.hidden = false;
      problem.replaceChildren(
        ...[
          h("p", {}, error.message),
          error.passing && h("p", { class: "small quiet" }, "It goes on when the service takes work again."),
        ].filter(Boolean),
      );
      return;
    }
    cancelAnimationFrame(drawing);
    drawPaths(paths);
    tabulate(paths);
    plot.draw({
      x: spaced([0, state.steps], state.steps + 1),
      series: paths.map((path, i) => ({
        color: colorOf(i),
        width: i === state.shown ? 3 : 2,
        values: Array.from({ length: state.steps + 1 }, (_, step) => path[step]?.loss ?? NaN),
      })),
    });
    for (const part of [land, converging, table]) {
      part.dataset.of = shown;
      delete part.dataset.stale;
    }
    land.dataset.drawn = Number(land.dataset.drawn ?? 0) + 1;
  }

  // What is drawn

  const part = (value, [low, high]) => (SIZE * (value - low)) / (high - low);
  const onLand = ([a, b]) => [part(a, model().spans[0]), SIZE - part(b, model().spans[1])];
  const onData = ({ x, y }) => [part(x, model().view.x), SIZE - part(y, model().view.y)];
  const put = (element, [left, top]) => {
    element.style.setProperty("left", `${left}%`);
    element.style.setProperty("top", `${top}%`);
  };

  function drawSurface() {
    const { values, as, bs } = state.surface ?? {};
    if (!values) return;
    const levels = leveled(values);
    paint(canvas, levels, GRID, rgb(theme.color("accent")), rgb(theme.color("card")));
    land.style.setProperty("--grid", GRID);
    const low = values.indexOf(Math.min(...values));
    const at = [as[low % GRID], bs[Math.floor(low / GRID)]];
    const [x, y] = onLand(at);
    const isolines = Array.from({ length: LEVELS }, (_, i) =>
      svg("path", { class: "iso", d: contour(levels, GRID, (i + 0.5) / LEVELS, SIZE) }),
    );
    overlay.replaceChildren(
      ...isolines,
      svg("path", { class: "lowest", d: `M${x - 1.6} ${y - 1.6}l3.2 3.2m0 -3.2l-3.2 3.2` }),
      svg("g", { class: "ways" }),
    );
    const { name } = state.losses[state.shown];
    best.textContent = `${name} is lowest on the grid at ${model()
      .parameters.map((of, k) => `${of} ${plots.short(at[k])}`)
      .join(", ")}: ${plots.short(values[low])}.`;
    best.dataset.at = JSON.stringify([...at, values[low]]);
    tabulateGrid();
  }

  function drawPaths(paths) {
    const ways = overlay.querySelector(".ways");
    if (!ways) return;
    ways.replaceChildren(
      ...paths.flatMap((path, i) => {
        const d = path
          .slice(0, state.steps + 1)
          .map(
            ({ at }, step) =>
              (step ? "L" : "M") +
              onLand(at)
                .map((v) => Math.min(1e4, Math.max(-1e4, v)).toFixed(2))
                .join(" "),
          )
          .join("");
        return [
          svg("path", { class: "halo", d }),
          svg("path", { class: "way", d, style: { "--color": `var(--${colorOf(i)})` } }),
        ];
      }),
    );
    lines.replaceChildren(
      ...paths.map((path, i) =>
        svg("path", {
          class: "way",
          d: fitted(path[Math.min(state.steps, path.length - 1)].at),
          style: { "--color": `var(--${colorOf(i)})` },
        }),
      ),
    );
  }

  /** The line of a model in the plane of the points. */
  function fitted([a, b]) {
    const ends =
      state.model === "line"
        ? model().view.x.map((x) => ({ x, y: a * x + b }))
        : [9, -9].map((far) => {
            const length = Math.hypot(a, b) || 1;
            return { x: (-b / length) * far, y: (a / length) * far };
          });
    return ends
      .map(
        (end, i) =>
          (i ? "L" : "M") +
          onData(end)
            .map((v) => v.toFixed(2))
            .join(" "),
      )
      .join("");
  }

  function drawStart() {
    put(handle, onLand(state.start));
    const said = model()
      .parameters.map((name, k) => `${name} ${plots.short(state.start[k])}`)
      .join(", ");
    handle.setAttribute("aria-label", `Start of the descent: ${said}; arrow keys move it`);
  }

  function drawPoints(focused = null) {
    dots.replaceChildren(
      ...state.points.map((point, i) => {
        const dot = h("button", {
          type: "button",
          class: `dot-point${point.label === 0 ? " other" : ""}`,
          tabindex: i === (focused ?? 0) ? 0 : -1,
          "aria-label": pointName(point, i),
          onkeydown: (event) => keyed(event, i),
        });
        put(dot, onData(point));
        return dot;
      }),
    );
    if (focused !== null) dots.children[focused]?.focus();
  }

  const pointName = (point, i) =>
    `Point ${i + 1} of ${state.points.length}: x ${plots.short(point.x)}, y ${plots.short(point.y)}${"label" in point ? `, class ${point.label}` : ""}`;

  function ticks(element, spans, names) {
    const marks = (span) => spaced(span, 5).slice(1, -1);
    element.replaceChildren(
      ...marks(spans[0]).map((value) =>
        h("span", { class: "across", style: { left: `${part(value, spans[0])}%` } }, plots.short(value)),
      ),
      ...marks(spans[1]).map((value) =>
        h("span", { class: "upward", style: { top: `${SIZE - part(value, spans[1])}%` } }, plots.short(value)),
      ),
      h("span", { class: "across name" }, `${names[0]} →`),
      h("span", { class: "upward name" }, `${names[1]} →`),
    );
  }

  function tabulate(paths) {
    const head = ["Loss", "at the start", `after ${state.steps} steps`, ...model().parameters];
    table.replaceChildren(
      h(
        "table",
        { class: "classes", id: "paths" },
        h("caption", { class: "unseen" }, "Where each path leads"),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            head.map((name, i) => h("th", { scope: "col", class: i ? "number" : null }, name)),
          ),
        ),
        h(
          "tbody",
          {},
          paths.map((path, i) => {
            const end = path[Math.min(state.steps, path.length - 1)];
            return h(
              "tr",
              {
                "data-losses": JSON.stringify(
                  path
                    .slice(0, state.steps + 1)
                    .map(({ loss }) => loss)
                    .filter((loss) => loss !== null),
                ),
                "data-at": JSON.stringify(path.slice(0, state.steps + 1).map(({ at }) => at)),
              },
              h(
                "th",
                { scope: "row" },
                h("span", { class: "swatch square", style: { "--color": `var(--${colorOf(i)})` } }),
                curveName(state.losses[i].name, state.losses[i].parameters),
              ),
              h("td", { class: "number" }, plots.short(path[0].loss)),
              h("td", { class: "number" }, path.diverged ? "diverges" : plots.short(end.loss ?? path.at(-2)?.loss)),
              end.at.map((value) => h("td", { class: "number" }, plots.short(value))),
            );
          }),
        ),
      ),
    );
  }

  function tabulateGrid() {
    if (!grid.open || !state.surface) return;
    const { as, bs, values } = state.surface;
    const every = Array.from({ length: 9 }, (_, i) => i * ((GRID - 1) / 8));
    const [across, up] = model().parameters;
    grid.replaceChildren(
      grid.firstChild,
      h(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": "The surface as numbers" },
        h(
          "table",
          { class: "numbers" },
          h("caption", { class: "unseen" }, `Loss by ${across}, in columns, and ${up}, in rows`),
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              h("th", { scope: "col" }, `${up} ↓ ${across} →`),
              every.map((i) => h("th", { scope: "col", class: "number" }, plots.short(as[i]))),
            ),
          ),
          h(
            "tbody",
            {},
            every.toReversed().map((row) =>
              h(
                "tr",
                {},
                h("th", { scope: "row" }, plots.short(bs[row])),
                every.map((column) => h("td", { class: "number" }, plots.short(values[row * GRID + column]))),
              ),
            ),
          ),
        ),
      ),
    );
  }

  // What the reader does

  function place(event, element) {
    const box = element.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, 1 - (event.clientY - box.top) / box.height].map((v) =>
      Math.min(1, Math.max(0, v)),
    );
  }
  const within = (fraction, [low, high]) => Number((low + fraction * (high - low)).toFixed(2));
  const clamped = (value, [low, high]) => Number(Math.min(high, Math.max(low, value)).toFixed(2));

  /** Follow the pointer until it is lifted. */
  function follow(element, event, move, done) {
    element.setPointerCapture(event.pointerId);
    const ended = new AbortController();
    const { signal: until } = ended;
    element.addEventListener("pointermove", move, { signal: until });
    for (const end of ["pointerup", "pointercancel"])
      element.addEventListener(
        end,
        () => {
          ended.abort();
          done?.();
        },
        { signal: until },
      );
  }

  function placeStart(event) {
    if (event.button) return;
    event.preventDefault();
    const move = (moved) => {
      const [a, b] = place(moved, land);
      state.start = [within(a, model().spans[0]), within(b, model().spans[1])];
      refresh();
    };
    move(event);
    handle.focus({ preventScroll: true });
    follow(land, event, move);
  }

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

  function moveStart(event) {
    if (!(event.key in ARROWS)) return;
    event.preventDefault();
    state.start = state.start.map((value, k) =>
      clamped(value + ARROWS[event.key][k] * (event.shiftKey ? 1 : 0.1), model().spans[k]),
    );
    refresh();
  }

  function changedPoints(focused = null) {
    state.preset = null;
    text.value = asText(state.points);
    drawPoints(focused);
    buildModel();
    refresh();
  }

  function appended(at) {
    if (state.points.length >= MOST.points) return false;
    state.points = [...state.points, { ...at, ...(state.model === "direction" && { label: state.label }) }];
    changedPoints(state.points.length - 1);
    return true;
  }

  let pressed = null;

  function addOrDrag(event) {
    if (event.button) return;
    event.preventDefault();
    let i = [...dots.children].indexOf(event.target);
    const at = (moved) => {
      const [x, y] = place(moved, field_);
      return { x: within(x, model().view.x), y: within(y, model().view.y) };
    };
    if (i < 0) {
      if (!appended(at(event))) return;
      i = state.points.length - 1;
      pressed = null;
    } else if (
      pressed?.i === i &&
      event.timeStamp - pressed.at < DOUBLE_MS &&
      Math.hypot(event.clientX - pressed.x, event.clientY - pressed.y) < DOUBLE_PX
    ) {
      // Its dot may be another by now, so that there is no dblclick; what was dragged meanwhile is held again, not taken away.
      pressed = null;
      removePoint(i);
      return;
    } else {
      pressed = { i, at: event.timeStamp, x: event.clientX, y: event.clientY };
      dots.children[i].focus({ preventScroll: true });
    }
    follow(
      field_,
      event,
      (moved) => {
        state.points = state.points.map((point, k) => (k === i ? { ...point, ...at(moved) } : point));
        put(dots.children[i], onData(state.points[i]));
        state.preset = null;
        refresh();
      },
      () => {
        if (state.preset === null) changedPoints(i);
      },
    );
  }

  function removePoint(i) {
    if (state.points.length < 2) return;
    state.points = state.points.filter((_, k) => k !== i);
    changedPoints(Math.min(i, state.points.length - 1));
    announce(`${state.points.length} points are left`);
  }

  function keyed(event, i) {
    const { view } = model();
    if (event.key in ARROWS) {
      const [x, y] = ARROWS[event.key].map((way) => way * (event.shiftKey ? 1 : 0.1));
      state.points = state.points.map((point, k) =>
        k === i ? { ...point, x: clamped(point.x + x, view.x), y: clamped(point.y + y, view.y) } : point,
      );
      changedPoints(i);
    } else if (event.key === "PageDown" || event.key === "PageUp") {
      const next = (i + (event.key === "PageDown" ? 1 : -1) + state.points.length) % state.points.length;
      for (const [k, dot] of [...dots.children].entries()) dot.tabIndex = k === next ? 0 : -1;
      dots.children[next].focus();
    } else if (event.key === "Delete" || event.key === "Backspace") removePoint(i);
    else return;
    event.preventDefault();
  }

  function typedPoints() {
    const points = fromText(text.value, state.model);
    text.toggleAttribute("aria-invalid", !points);
    if (!points) return;
    state.points = points;
    state.preset = null;
    drawPoints();
    buildModel();
    refresh();
  }

  /** Nothing of another model is shown: neither its surface nor where its paths led. */
  function cleared() {
    canvas.width = canvas.height = 0;
    overlay.replaceChildren();
    lines.replaceChildren();
    table.replaceChildren();
    plot.forget();
    best.textContent = "";
  }

  // Controls

  function buildModel() {
    const models = choice(
      "model",
      Object.entries(MODELS).map(([name, { title }]) => [name, title]),
      state.model,
      (name) => {
        Object.assign(state, beginning(name), { surface: null });
        cleared();
        rebuild();
      },
      null,
      "Model",
    );
    const presets = choice(
      "preset",
      Object.keys(model().presets).map((name) => [name, name]),
      state.preset,
      (name) => {
        state.preset = name;
        state.points = model().presets[name]();
        text.value = asText(state.points);
        drawPoints();
        refresh();
      },
      null,
      "Points",
    );
    const label =
      state.model === "direction" &&
      choice(
        "label",
        [
          [1, "● class 1"],
          [0, "□ class 0"],
        ],
        state.label,
        (value) => {
          state.label = value;
        },
        null,
        "New points are of",
      );
    const focused = document.activeElement?.name;
    modelChoice.replaceChildren(
      ...[
        models.group,
        presets.group,
        label && h("span", { class: "small quiet" }, "a click adds"),
        label?.group,
      ].filter(Boolean),
    );
    if (focused) modelChoice.querySelector(`[name="${focused}"]:checked`)?.focus();
  }

  function buildSteering() {
    steering.replaceChildren(
      slider("rate", { label: "step size", min: 0.01, max: 2, step: 0.01, value: state.rate }, (value) => {
        state.rate = value;
        refresh();
      }).element,
      slider(
        "steps",
        { label: "steps", min: 1, max: MOST.steps, step: 1, value: state.steps, integer: true },
        (value) => {
          state.steps = Math.round(Math.min(MOST.steps, Math.max(1, value)));
          refresh();
        },
      ).element,
    );
  }

  function buildLegend() {
    legend.replaceChildren(
      ...state.losses.map(({ name, parameters }, i) =>
        h(
          "li",
          { style: { "--color": `var(--${colorOf(i)})` } },
          h(
            "label",
            { class: "none-box" },
            h("input", {
              type: "radio",
              name: "shown",
              checked: i === state.shown,
              onchange: () => {
                state.shown = i;
                buildForm();
                refresh();
              },
            }),
            h("span", { class: "swatch" }),
            h("span", { class: "mono" }, curveName(name, parameters)),
          ),
          state.losses.length > 1 &&
            h(
              "button",
              {
                type: "button",
                class: "tiny",
                "aria-label": `Remove ${curveName(name, parameters)}`,
                onclick: () => {
                  state.losses.splice(i, 1);
                  state.shown = Math.min(state.shown, state.losses.length - 1);
                  rebuild();
                },
              },
              icon("close"),
            ),
        ),
      ),
    );
    add.replaceChildren(
      h("option", { value: "" }, "Add a loss …"),
      ...fitting(model(), losses).map(({ name }) => h("option", {}, name)),
    );
    add.disabled = state.losses.length >= MOST.losses;
  }

  function buildForm() {
    const own = state.losses[state.shown];
    const loss = lossOf(own);
    const fields = settable(loss)
      .filter(([name]) => !RARE.has(name))
      .map(([name, schema]) =>
        field(loss, name, schema, own.parameters[name], (value) => {
          if (value === undefined) delete own.parameters[name];
          else own.parameters[name] = value;
          buildLegend();
          refresh();
        }),
      )
      .filter(({ kind }) => kind !== "text");
    form.replaceChildren(
      h(
        "p",
        { class: "small quiet" },
        fields.length
          ? `The surface is that of ${loss.name}, with`
          : `The surface is that of ${loss.name}, which has no parameters to move.`,
      ),
      ...fields.map(({ element }) => element),
    );
  }

  // The address

  function toAddress() {
    const begun = beginning(state.model);
    const query = new URLSearchParams();
    if (state.model !== "line") query.set("model", state.model);
    if (state.preset === null)
      query.set("points", state.points.map((point) => Object.values(point).join(",")).join(";"));
    else if (state.preset !== begun.preset) query.set("preset", state.preset);
    for (const name of ["rate", "steps", "shown"]) if (state[name] !== begun[name]) query.set(name, state[name]);
    if (String(state.start) !== String(begun.start)) query.set("start", state.start.join(","));
    if (JSON.stringify(state.losses) !== JSON.stringify(begun.losses))
      query.set("losses", JSON.stringify(state.losses));
    context.navigate(context.path, query, { replace: true });
  }

  rebuild();
}

function beginning(name) {
  const model = MODELS[name];
  const [preset] = Object.keys(model.presets);
  return {
    model: name,
    preset,
    points: model.presets[preset](),
    start: model.start,
    rate: model.rate,
    steps: 60,
    shown: 0,
    label: 1,
    losses: model.losses.map((loss) => ({ name: loss, parameters: {} })),
  };
}

const asText = (points) => points.map((point) => Object.values(point).join(", ")).join("\n");

/** Points from lines of numbers, or null where one is not a point. */
function fromText(text, model) {
  const rows = text
    .split(/[\n;]/)
    .filter((line) => line.trim())
    .map((line) =>
      line
        .trim()
        .split(/[\s,]+/)
        .map(Number),
    );
  const fine =
    rows.length > 0 &&
    rows.length <= MOST.points &&
    rows.every(
      (row) =>
        row.every(Number.isFinite) &&
        (model === "line" ? row.length === 2 : row.length === 3 && (row[2] === 0 || row[2] === 1)),
    );
  return fine ? rows.map(([x, y, label]) => (model === "line" ? { x, y } : { x, y, label })) : null;
}

function fromAddress(query, losses) {
  const state = beginning(query.get("model") in MODELS ? query.get("model") : "line");
  const { presets } = MODELS[state.model];
  if (query.get("preset") in presets)
    Object.assign(state, { preset: query.get("preset"), points: presets[query.get("preset")]() });
  const points = query.has("points") && fromText(query.get("points"), state.model);
  if (points) Object.assign(state, { points, preset: null });
  const number = (name, low, high) => {
    const value = Number(query.get(name));
    if (query.has(name) && value >= low && value <= high) state[name] = value;
  };
  number("rate", 1e-6, 100);
  number("steps", 1, MOST.steps);
  const start = query.get("start")?.split(",").map(Number);
  if (start?.length === 2 && start.every(Number.isFinite)) state.start = start;
  try {
    const fit = new Set(fitting(MODELS[state.model], losses).map(({ name }) => name));
    const wanted = JSON.parse(query.get("losses") ?? "[]")
      .filter(({ name }) => fit.has(name))
      .slice(0, MOST.losses);
    if (wanted.length) state.losses = wanted.map(({ name, parameters }) => ({ name, parameters: parameters ?? {} }));
  } catch {
    /* somebody cut the address */
  }
  number("shown", 0, state.losses.length - 1);
  return state;
}
