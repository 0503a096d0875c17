/** Two parameters of a linear model: the surface of a loss, and gradient descent with several losses. */

import { h, scrollRegion } from "../dom.js";
import { latest } from "../latest.js";
import { descend, MODELS, spaced, surface } from "../linear.js";
import { descentSliders, lossList, lossParameters, modelChoice } from "./landscape/controls.js";
import { pointsPlane } from "./landscape/points.js";
import { asText, fromQuery, fromText, initial, toQuery } from "./landscape/state.js";
import { GRID, surfacePlane } from "./landscape/surface.js";
import { pathsTable, surfaceTable } from "./landscape/tables.js";

const COLORS = 6;
const CACHED = 60;

export async function render(root, context) {
  const { api, plots, theme, signal, announce } = context;
  const convergence = h("div", { class: "plot" });
  const [losses, plot] = await Promise.all([
    api.losses(),
    plots.curves(convergence, {
      height: () => (innerWidth < 640 ? 220 : 260),
      xLabel: () => "step",
      yLabel: () => "loss",
      link: "landscape",
      log: true,
      signal,
    }),
  ]);
  const state = fromQuery(context.query, losses);
  const cache = new Map(); // surfaces and paths, by what they depend on
  let shownSurface = null;
  let failure = null;

  const model = () => MODELS[state.model];
  const lossOf = ({ name }) => losses.find((loss) => loss.name === name);
  const colorOf = (i) => `curve-${(i % COLORS) + 1}`;

  const land = surfacePlane(state, { theme, moved: refresh });
  const data = pointsPlane(state, { announce, edited: editPoints, moved: movePoints });
  const models = modelChoice(state, { setModel, setPreset });
  const sliders = descentSliders(state, refresh);
  const list = lossList(state, losses, colorOf, { show: showLoss, rebuild });
  const parameters = lossParameters(state, losses, () => {
    list.build();
    refresh();
  });
  const table = scrollRegion("The end of each path");
  const problem = h("div", { class: "notice", role: "alert", hidden: true });
  const text = h("textarea", {
    rows: 8,
    spellcheck: "false",
    "aria-label": "The points, one a line",
    oninput: typePoints,
  });
  const columns = h("p", { class: "small quiet" });
  const best = h("p", { class: "small quiet number", id: "best" });
  const grid = h("details", { ontoggle: tabulateSurface }, h("summary", {}, "The surface as numbers"));
  const addInMiddle = h(
    "button",
    { type: "button", class: "link", onclick: () => data.append({ x: 0, y: 0 }) },
    "Add one in the middle",
  );

  root.append(
    h(
      "header",
      { class: "title" },
      h("h1", {}, "Landscape"),
      h(
        "p",
        { class: "lead" },
        "Fit a line to a few points. See the surface of each loss and the path of gradient descent.",
      ),
    ),
    h(
      "div",
      { class: "desk" },
      h(
        "section",
        { class: "card side", "aria-label": "Losses and steps" },
        sliders.element,
        h("div", { class: "field" }, h("span", { class: "field-title" }, "Losses"), list.add),
        parameters.element,
      ),
      h(
        "section",
        { class: "card more inputs", "aria-label": "Points and landscape" },
        h("div", { class: "row spread" }, models.element),
        list.legend,
        problem,
        h(
          "div",
          { class: "lands" },
          figure(data, "Click to add a point, drag to move it, double-click to remove it. ", addInMiddle, "."),
          figure(land, "Drag the circle, or click, to move the start. The cross is the lowest point of the grid."),
        ),
      ),
      h(
        "section",
        { class: "card more", "aria-label": "Convergence" },
        h("h2", {}, "Loss by step"),
        convergence,
        table,
      ),
      h(
        "div",
        { class: "card more" },
        best,
        h("details", {}, h("summary", {}, "The points as text"), columns, text),
        grid,
      ),
    ),
  );

  const update = latest(evaluate, signal);
  context.whenReady(() => {
    if (failure?.passing) update();
  });
  theme.onChange(drawSurface, signal);
  rebuild();

  function rebuild() {
    models.build();
    sliders.build();
    list.build();
    parameters.build();
    land.drawScale();
    data.drawScale();
    columns.textContent = state.model === "line" ? "x, y" : "x, y, class (0 or 1)";
    text.value = asText(state.points);
    data.draw();
    refresh();
  }

  function refresh() {
    context.navigate(context.path, toQuery(state), { replace: true });
    land.drawStart();
    update();
  }

  // Requests

  /** The cached value of a key; `make` makes it. The least recently used value is dropped. */
  function cached(key, make) {
    const value = cache.get(key) ?? make();
    cache.delete(key);
    cache.set(key, value);
    if (cache.size > CACHED) cache.delete(cache.keys().next().value);
    return value;
  }

  async function evaluate(aborted) {
    if (!state.points.length) return;
    const { points, rate, start, steps, shown } = state;
    const tasks = state.losses.map((entry) => ({
      model: model(),
      loss: lossOf(entry),
      parameters: entry.parameters,
      points,
      rate,
    }));
    const keys = tasks.map((task) => JSON.stringify([state.model, task.loss.name, task.parameters, points]));
    const parts = [land.element, convergence, table];
    const description = JSON.stringify([state.model, state.losses, points]);
    for (const part of parts) part.toggleAttribute("data-stale", part.dataset.of !== description);
    let paths;
    const made = async (key, make) => {
      const found = cached(key, () => ({}));
      found.value ??= await make();
      return found.value;
    };
    try {
      const walks = tasks.map((task, i) =>
        made(`${keys[i]} ${rate} ${start} ${steps}`, () => descend(api, task, start, steps, aborted)),
      );
      const drawing = made(keys[shown], () => surface(api, tasks[shown], GRID, aborted)).then((found) => {
        if (aborted.aborted) return;
        shownSurface = found;
        drawSurface();
      });
      [paths] = await Promise.all([Promise.all(walks), drawing]);
    } catch (error) {
      if (!(error instanceof api.Problem)) throw error;
      fail(error);
      return;
    }
    fail(null);
    drawPaths(paths);
    drawConvergence(paths);
    table.replaceChildren(pathsTable(state, paths, model().parameters, colorOf));
    for (const part of parts) {
      part.dataset.of = description;
      delete part.dataset.stale;
    }
    land.element.dataset.drawn = Number(land.element.dataset.drawn ?? 0) + 1;
  }

  function fail(error) {
    failure = error;
    problem.hidden = !error;
    if (!error) return;
    const note = error.passing && h("p", { class: "small quiet" }, "The descent continues when the service is ready.");
    problem.replaceChildren(...[h("p", {}, error.message), note].filter(Boolean));
  }

  // Drawing

  function drawSurface() {
    if (!shownSurface?.values) return;
    const { at, value } = land.draw(shownSurface);
    const names = model().parameters.map((name, k) => `${name} ${plots.short(at[k])}`);
    best.textContent = `The lowest ${state.losses[state.shown].name} on the grid is ${plots.short(value)}, at ${names.join(", ")}.`;
    best.dataset.at = JSON.stringify([...at, value]);
    tabulateSurface();
  }

  function drawPaths(paths) {
    const walked = paths.map((path) => path.slice(0, state.steps + 1).map(({ at }) => at));
    land.drawPaths(walked.map((points, i) => ({ points, color: colorOf(i) })));
    data.drawFits(walked.map((points, i) => ({ at: points.at(-1), color: colorOf(i) })));
  }

  function drawConvergence(paths) {
    const x = spaced([0, state.steps], state.steps + 1);
    const series = paths.map((path, i) => ({
      color: colorOf(i),
      width: i === state.shown ? 3 : 2,
      values: x.map((_, step) => path[step]?.loss ?? NaN),
    }));
    plot.draw({ x, series });
  }

  function tabulateSurface() {
    if (!grid.open || !shownSurface?.values) return;
    grid.replaceChildren(grid.firstChild, surfaceTable(shownSurface, model().parameters));
  }

  /** Clear all that shows the previous model. */
  function clear() {
    shownSurface = null;
    land.clear();
    data.drawFits([]);
    table.replaceChildren();
    plot.forget();
    best.textContent = "";
  }

  // Changes

  function setModel(name) {
    Object.assign(state, initial(name));
    clear();
    rebuild();
  }

  function setPreset(name) {
    state.preset = name;
    state.points = model().presets[name]();
    text.value = asText(state.points);
    data.draw();
    refresh();
  }

  function showLoss(i) {
    state.shown = i;
    parameters.build();
    refresh();
  }

  function editPoints(focused = null) {
    state.preset = null;
    text.value = asText(state.points);
    data.draw(focused);
    models.build();
    refresh();
  }

  function movePoints() {
    state.preset = null;
    refresh();
  }

  function typePoints() {
    const points = fromText(text.value, state.model);
    text.toggleAttribute("aria-invalid", !points);
    if (!points) return;
    state.points = points;
    state.preset = null;
    data.draw();
    models.build();
    refresh();
  }
}

/** A plane with its ticks and its caption. */
const figure = ({ element, marks }, ...caption) =>
  h("figure", {}, h("div", { class: "framed" }, element, marks), h("figcaption", { class: "small quiet" }, caption));
