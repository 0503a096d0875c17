/** The runs on one data set: tables of runs that can be compared, each ranked by a metric. */

import { h, patch } from "../../dom.js";
import { counted, firstOf, named, numbersOf, pathOf } from "../../scores.js";
import { clusters, keyOf } from "./clusters.js";
import { ranked } from "./table.js";

const MOST_OPEN = 12;

/** Whether the list has the numbers of all rows that a run has counted. */
const isSummarized = ({ status, summary_of: summarizedCounts, counted: { rows, batches } }) =>
  status === "sealed" || (summarizedCounts?.rows === rows && summarizedCounts.batches === batches);

/** A data set's section: `{ element, show(runs) }`. */
export function group(name, context) {
  const { api, signal, query, navigate, better } = context;
  const scores = new Map(); // of open runs, by their address: the entity tag, values and intervals
  const head = h("span", { class: "quiet" });
  const select = h("select", { "aria-label": `Metric of ${name || "the runs"}`, onchange: choose });
  const field = h("label", { class: "row metric" }, h("span", { class: "small quiet" }, "Ranked by"), select);
  const tables = h("div", { class: "stage" });
  const element = h(
    "section",
    { class: "group" },
    h("div", { class: "row spread" }, h("h2", {}, name || "Without a data set", head), field),
    tables,
  );
  let members = [];
  let latestQuestion = "";
  let parts = [];

  async function show(runs) {
    head.textContent = counted(runs.length, "run");
    update(runs);
    draw(); // at once; a score of an open run and a verdict may take a while
    const open = runs.filter((run) => run.counted.rows && !isSummarized(run));
    await Promise.all(open.slice(0, MOST_OPEN).map(score));
    update(runs);
    await rank();
  }

  /** Take the runs with the scores that are known, and offer the names of their metrics. */
  function update(runs) {
    members = runs.map((run) => ({
      ...run,
      ...(isSummarized(run) ? summarized(run) : (scores.get(pathOf(run.run, run.owner)) ?? summarized(run))),
    }));
    const names = [...new Set(members.flatMap(({ values }) => Object.keys(values ?? {})))].filter(better);
    field.hidden = !names.length;
    if (JSON.stringify(names) === select.dataset.names) return;
    select.dataset.names = JSON.stringify(names);
    const chosen = [select.value, ...query.getAll("metric")].find((entry) => names.includes(entry));
    select.replaceChildren(...names.map((entry) => h("option", { value: entry }, entry)));
    select.value = chosen ?? firstOf(names) ?? "";
  }

  const summarized = ({ summary, intervals }) => ({ values: summary ?? {}, intervals: intervals ?? {} });

  /** Ask for the score of an open run, if it has changed. */
  async function score({ run, owner }) {
    const path = pathOf(run, owner, { slices: "false" });
    const key = pathOf(run, owner);
    try {
      const changed = await api.changed(path, scores.get(key)?.tag, signal);
      if (!changed) return;
      const { result } = changed.document;
      const intervals = Object.entries(result?.intervals ?? {}).map(([metric, { low, high }]) => [metric, [low, high]]);
      scores.set(key, {
        tag: changed.tag,
        values: result ? numbersOf(result) : {},
        intervals: Object.fromEntries(intervals),
      });
    } catch (error) {
      if (!(error instanceof api.Problem)) throw error;
    }
  }

  /** The runs that have the metric, the best first, and those without it. */
  function ordered() {
    const metric = select.value;
    const value = ({ values }) => named(values, metric) ?? null;
    const sign = better(metric) === "lower" ? 1 : -1;
    const known = members.filter((run) => value(run) !== null).sort((a, b) => sign * (value(a) - value(b)));
    return { metric, known, without: members.filter((run) => value(run) === null) };
  }

  /** Ask which runs can be told from the best, unless the answer is known. */
  async function rank() {
    const { metric, known } = ordered();
    const question = JSON.stringify([metric, known.map((run) => [run.run, run.owner, run.counted.rows, run.status])]);
    if (question !== latestQuestion) {
      latestQuestion = question;
      const answer = await clusters(known, metric, context);
      if (question !== latestQuestion) return; // a newer question is being answered
      parts = answer;
    }
    draw();
  }

  function draw() {
    const { metric, known, without } = ordered();
    // A part has the runs as they were when it was asked for; those that came since are in none yet.
    const present = new Map(known.map((run) => [keyOf(run), run]));
    const placed = parts.map(({ runs, verdicts, reason }) => ({
      runs: runs.map((run) => present.get(keyOf(run))).filter(Boolean),
      verdicts,
      reason,
    }));
    for (const run of placed.flatMap(({ runs }) => runs)) present.delete(keyOf(run));
    if (placed.length) placed[0].runs.push(...present.values());
    else placed.push({ runs: known, verdicts: new Map(), reason: null });
    patch(
      tables,
      placed.filter(({ runs }) => runs.length).map((part) => ranked(part, metric, context)),
      without.length > 0 &&
        ranked({ runs: without, reason: known.length ? `These runs have no ${metric}.` : null }, null, context),
    );
  }

  function choose() {
    const others = query.getAll("metric").filter((entry) => ![...select.options].some(({ value }) => value === entry));
    query.delete("metric");
    for (const entry of [...others, select.value]) query.append("metric", entry);
    navigate("/runs", query, { replace: true });
    parts = [];
    draw();
    rank();
  }

  return { element, show };
}
