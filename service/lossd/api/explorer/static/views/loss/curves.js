/** The curves of a loss with their controls. The state is `{ axis, given, parameters, others }`. */

import { choice } from "../../controls/choice.js";
import { defaultsOf, draw } from "../../curve.js";
import { h } from "../../dom.js";
import { latest } from "../../latest.js";
import { saveButton } from "../../save.js";
import { curveName, sentence } from "../../words.js";
import { axisOf, pictureQuery, readAddress, writeAddress } from "./address.js";
import { requestCode } from "./code.js";
import { comparison } from "./comparison.js";
import { numbersTable } from "./details.js";
import { gradientSentence, legendEntries } from "./legend.js";
import { givenFields, parameterFields } from "./parameters.js";
import { curvePlot } from "./plot.js";

const COLORS = 6;
// Each curve has dashes of its own, so that curves that coincide are seen, and colours are not all that differs.
const DASHES = [undefined, [7, 4], [2, 3], [12, 3, 2, 3], [14, 5], [5, 2, 1, 2, 1, 2], [1, 4], [9, 2]];

/** The card of the curves, then `guide`, the code and the values. */
export async function curves(root, context, loss, losses, guide) {
  const { api, href, signal, announce } = context;
  const state = readAddress(context.query, loss, losses);
  let results = [];
  let failure = null;

  const legend = h("ul", { class: "legend" });
  const about = h("p", { class: "small quiet" });
  const problem = h("div", { class: "notice", role: "alert", hidden: true });
  const plot = await curvePlot(loss, state, context);
  const parameters = parameterFields(loss, state, refresh);
  const given = givenFields(state, refresh);
  const compare = comparison(loss, losses, state, { add, reset });
  const numbers = numbersTable(context);
  const code = requestCode(context);
  const save = saveButton(
    () => [`/v1/losses/${loss.name}/curve.svg?${pictureQuery(loss, state)}`, `${loss.name}.svg`],
    context,
  );

  root.append(
    h(
      "div",
      { class: "board" },
      h(
        "section",
        { class: "card drawing", "aria-label": "Curves" },
        h("div", { class: "legend-row" }, legend, axisChoice()),
        problem,
        plot.element,
        h("div", { class: "row spread" }, about, save),
      ),
      h(
        "section",
        { class: "card side", "aria-label": "Parameters" },
        parameters.element,
        given.element,
        compare.element,
      ),
    ),
    guide,
    code.element,
    h("div", { class: "card more" }, numbers.element),
  );
  await plot.start();
  const update = latest(evaluate, signal);
  context.whenReady(() => {
    if (failure?.passing) update();
  });
  parameters.build();
  given.build();
  refresh();

  /** All curves of the plot, the loss's own first. */
  function plottedCurves() {
    const others = state.others.map((curve) => ({ ...curve, loss: losses.find(({ name }) => name === curve.name) }));
    return [{ loss, parameters: state.parameters }, ...others].map((curve, i) => ({
      loss: curve.loss,
      parameters: curve.parameters,
      given: state.given,
      axis: axisOf(curve.loss, state.axis.name),
      label: curveName(curve.loss.name, curve.parameters),
      color: `curve-${(i % COLORS) + 1}`,
      dash: DASHES[i],
    }));
  }

  function refresh() {
    writeAddress(context, loss, state);
    compare.fill();
    update();
  }

  async function evaluate(aborted) {
    const drawn = async (curve) => ({ ...curve, ...(await draw(curve, { api, signal: aborted })) });
    const [first, ...others] = plottedCurves().map(drawn);
    const all = Promise.all([first, ...others]);
    all.catch(() => {}); // awaited below, after the loss's own curve
    try {
      if (!results.length) show([await first]); // the others join when they arrive
      show(await all);
    } catch (error) {
      if (!(error instanceof api.Problem)) throw error;
      fail(error);
      return;
    }
    fail(null);
    plot.mark(false);
  }

  function show(drawn) {
    results = drawn;
    plot.draw(results);
    legend.replaceChildren(...legendEntries(results, { href, remove }));
    about.textContent = gradientSentence(results);
    numbers.fill(plot, results, state.axis);
    code.show(results[0]);
  }

  /** Show why the curves are old: above the plot, and beside the parameter that the service refuses. */
  function fail(error) {
    failure = error;
    problem.hidden = !error;
    const faults = (error?.errors ?? []).map(({ pointer, detail }) => [
      /^\/loss\/([^/]+)/.exec(pointer)?.[1],
      sentence(detail.replace(/^loss\.[\w.]+: (input )?/, "")), // the field says which parameter it is
    ]);
    parameters.mark(new Map(faults));
    if (!error) return;
    plot.mark(true);
    const note = (text) => h("p", { class: "small quiet" }, text);
    const lines = [
      h("p", {}, error.message),
      results.length > 0 && note("The plot shows the previous curves."),
      error.passing && note("The plot updates when the service is ready."),
      error.page && h("p", {}, h("a", { href: error.page }, "What this error means")),
    ];
    problem.replaceChildren(...lines.filter(Boolean));
  }

  function add(curve) {
    state.others.push(curve);
    announce(`${curveName(curve.name, curve.parameters)} was added to the plot`);
    refresh();
  }

  function remove(i) {
    state.others.splice(i, 1);
    refresh();
    compare.focus();
  }

  function reset() {
    Object.assign(state, readAddress(new URLSearchParams(), loss, losses));
    parameters.build();
    given.build();
    plot.forget();
    refresh();
  }

  function axisChoice() {
    if (loss.axes.length < 2) return null;
    const options = loss.axes.map(({ name }) => [name, name.replaceAll("_", " ")]);
    return choice("axis", options, state.axis.name, setAxis, null, "Axis").group;
  }

  function setAxis(name) {
    state.axis = axisOf(loss, name);
    state.given = defaultsOf(state.axis);
    state.others = state.others.filter((curve) =>
      axisOf(
        losses.find((entry) => entry.name === curve.name),
        name,
      ),
    );
    given.build();
    plot.forget();
    refresh();
  }
}
