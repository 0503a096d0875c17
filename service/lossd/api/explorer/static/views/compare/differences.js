/** A run's differences from the baseline as whiskers around 0: metrics, slices, classes. */

import { aligned, evenly } from "../../decimals.js";
import { h, patch, scrollRegion, warningList } from "../../dom.js";
import { figure, short } from "../../plots.js";
import { digitsOf, finest, isCount, percent, sliceName, whole } from "../../scores.js";
import { axisOf, intervalCell, scale, whisker } from "../../whiskers.js";

const SHOWN = 30;
const LEAST_P = 0.001;
const VERDICTS = { b: ["better", "good"], a: ["worse", "bad"], undecided: ["undecided", "quiet"] };
const CLASS = /\.per_class\.(\d+)$/;
const AVERAGE = /\.(micro|weighted)$/;

/**
 * The part of one comparison: `{ element, show(comparison, baseline, document), detail(comparison, level) }`. `detail`
 * takes the comparison with slices and classes, or null if there is none.
 */
export function differences() {
  const element = h("section", { class: "group" });
  const metrics = scrollRegion("Differences of the metrics");
  const averages = scrollRegion("Differences of further averages");
  const further = h("details", {}, h("summary", {}, "Micro and weighted averages"), averages);
  const card = h("div", { class: "card more metrics-card" });
  const waiting = h("p", { class: "small quiet" }, "Comparing slices and classes …");
  const classes = byName("Classes", "classes");
  const slices = byName("Slices", "slices");

  function show(comparison, baseline, { runs, level }) {
    const all = Object.entries(comparison.metrics).filter(([name]) => !isCount(name));
    const first = all.filter(([name]) => !AVERAGE.test(name)).map(named);
    const second = all.filter(([name]) => AVERAGE.test(name)).map(named);
    const apart = first.filter((entry) => !isShare(entry)).map(({ name }) => name);
    patch(metrics, table(first, "Metric", level));
    patch(averages, table(second, "Metric", level));
    patch(
      card,
      h("h3", {}, "Metrics"),
      metrics,
      apart.length > 0 &&
        apart.length < first.length &&
        h("p", { class: "small quiet" }, `These metrics have separate axes: ${apart.join(", ")}.`),
      second.length > 0 && further,
    );
    patch(
      element,
      runs.length > 2 && h("h2", { class: "wide-name" }, `${comparison.run} against ${baseline.run}`),
      warningList(comparison.warnings),
      card,
      waiting,
      slices.element,
      classes.element,
    );
  }

  function detail(comparison, level) {
    waiting.hidden = true;
    const perClass = Object.entries(comparison?.metrics ?? {})
      .filter(([name]) => CLASS.test(name))
      .map(([name, entry]) => ({ metric: name.replace(CLASS, ""), name: `class ${CLASS.exec(name)[1]}`, ...entry }));
    const perSlice = (comparison?.slices ?? []).flatMap(({ slice, rows, metrics }) =>
      Object.entries(metrics)
        .filter(([name]) => !CLASS.test(name) && !isCount(name))
        .map(([metric, entry]) => ({ metric, name: sliceName(slice), rows, ...entry })),
    );
    classes.show(perClass, level);
    slices.show(perSlice, level);
  }

  return { element, show, detail };
}

const named = ([name, entry]) => ({ name, ...entry });

/** Differences of one metric, chosen by its name, for classes or slices; the worst first. */
function byName(title, key) {
  const select = h("select", { "aria-label": `Metric of the ${key}`, onchange: () => draw() });
  const region = scrollRegion(`Differences of the ${key}`);
  const all = h("button", { type: "button", class: "plain", onclick: showAll }, `Show all ${key}`);
  const element = h(
    "div",
    { class: `card more ${key}-card`, hidden: true },
    h(
      "div",
      { class: "row spread" },
      h("h3", {}, title),
      h("label", { class: "row metric" }, h("span", { class: "small quiet" }, "Metric"), select),
    ),
    region,
    h("p", { class: "small quiet" }, "In this table p is corrected for all metrics, slices and classes together."),
    h("p", { class: "row" }, all),
  );
  let entries = [];
  let level = 0.95;
  let most = SHOWN;

  function show(found, at) {
    [entries, level] = [found, at];
    const names = [...new Set(found.map(({ metric }) => metric))];
    element.hidden = !names.length;
    if (select.dataset.names !== JSON.stringify(names)) {
      select.dataset.names = JSON.stringify(names);
      const before = select.value;
      select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
      select.value = [before, "f1.macro", "f1", "accuracy"].find((name) => names.includes(name)) ?? names[0] ?? "";
    }
    draw();
  }

  function draw() {
    const chosen = entries.filter(({ metric }) => metric === select.value);
    const sign = ({ better, difference }) => (better === "lower" ? -1 : 1) * (difference ?? Number.POSITIVE_INFINITY);
    chosen.sort((a, b) => sign(a) - sign(b));
    patch(region, table(chosen.slice(0, most), title === "Classes" ? "Class" : "Slice", level, finest(chosen)));
    all.parentElement.hidden = chosen.length <= most;
  }

  function showAll() {
    most = Number.POSITIVE_INFINITY;
    draw();
    region.focus();
  }

  return { element, show };
}

/** A table of differences; `decimals` are those of the intervals if they have a unit in common. */
function table(entries, what, level, decimals = null) {
  // Scores from 0 to 1 share an axis; numbers of other units have one each, without its numbers.
  const axisAround = (measured) =>
    axisOf(
      measured.flatMap(({ difference, low, high }) => [difference, low, high]),
      { around: 0 },
    );
  const shares = entries.filter(isShare);
  const axis = axisAround(shares);
  const share = evenly(shares.flatMap(({ baseline, value }) => [baseline, value]));
  const text = (entry, key) => (shares.includes(entry) ? share : figure)(entry[key]);
  const ofShares = finest(shares);
  const placesOf = (entry) => decimals ?? (shares.includes(entry) ? ofShares : null);
  const axisFor = (entry) => (shares.includes(entry) ? axis : { ...axisAround([entry]), ticks: [] });
  const rows = entries.some((entry) => entry.rows !== undefined);
  const head = (text) => h("th", { scope: "col", class: "number" }, text);
  return aligned(
    h(
      "table",
      { class: "fold differences" },
      h("caption", { class: "unseen" }, `${what}: baseline, value, difference with its interval, p, verdict`),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, what),
          rows && head("rows"),
          head("baseline"),
          head("value"),
          head("difference"),
          head(`${percent(level)} interval`),
          h("td", { class: "whisker-cell" }, shares.length > 0 && scale(axis)),
          head("p"),
          h("th", { scope: "col" }, "verdict"),
        ),
      ),
      h(
        "tbody",
        {},
        entries.map((entry) => {
          const [verdict, tone] = VERDICTS[entry.verdict] ?? ["", "quiet"];
          return h(
            "tr",
            { "data-key": entry.name },
            h("th", { scope: "row" }, entry.name),
            rows && h("td", { class: "number rows-cell", "data-name": "rows" }, whole(entry.rows)),
            h("td", { class: "number further", "data-name": "baseline" }, text(entry, "baseline")),
            h("td", { class: "number further", "data-name": "value" }, text(entry, "value")),
            h("td", { class: "number value-cell" }, difference(entry, placesOf(entry))),
            intervalCell(entry, { sign: true, decimals: placesOf(entry) }),
            h(
              "td",
              { class: "whisker-cell" },
              whisker({ value: entry.difference, low: entry.low, high: entry.high }, axisFor(entry), { tone, line: 0 }),
            ),
            h(
              "td",
              { class: "number p-cell", "data-name": "p", "data-missing": !Number.isFinite(entry.p_holm) },
              probability(entry.p_holm),
            ),
            h("td", { class: "verdict-cell" }, verdict && h("span", { class: "chip", "data-tone": tone }, verdict)),
          );
        }),
      ),
    ),
  );
}

const isShare = ({ better, baseline, value }) =>
  better === "higher" && [baseline, value].every((number) => number === null || (number >= 0 && number <= 1));

/** A difference, with the decimals of its interval. */
function difference({ difference: value, low, high }, decimals) {
  if (!Number.isFinite(value)) return "–";
  if (!Number.isFinite(low)) return `${value >= 0 ? "+" : ""}${short(value)}`;
  return digitsOf(low, high, { sign: true, decimals })(value);
}

/** A p-value in two digits. */
function probability(p) {
  if (!Number.isFinite(p)) return "–";
  return p < LEAST_P ? `< ${LEAST_P}` : String(Number(p.toPrecision(2)));
}
