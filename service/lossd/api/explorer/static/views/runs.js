/** All runs by data set: the runs of one are ranked by a metric, with what cannot be told from the best. */

import { h, patch } from "../dom.js";
import { datasetOf, directions } from "../scores.js";
import { onAbort } from "../signals.js";
import { keyOf } from "./runs/clusters.js";
import { noRuns, runsAreOff } from "./runs/empty.js";
import { group } from "./runs/group.js";
import { Selection } from "./runs/selection.js";

const PAGE = 200;
const EVERY_MS = 3000;

export async function render(root, context) {
  const { api, signal, query, href } = context;
  const better = directions(await api.metrics());
  const filters = new URLSearchParams(
    ["dataset", "task", "tag"].map((name) => [name, query.get(name)]).filter(([, v]) => v),
  );
  const runs = new Map();
  let next = null;
  let isBusy = false;

  let first;
  try {
    first = await page();
  } catch (error) {
    if (error.status !== 404) throw error;
    root.append(runsAreOff(error));
    return;
  }
  const selection = new Selection(context);
  const board = h("div", { class: "stage" });
  const more = h("button", { type: "button", class: "plain", onclick: showMore, hidden: true }, "Show older runs");
  const groups = new Map();
  root.append(
    h(
      "header",
      { class: "title" },
      h("h1", {}, "Runs"),
      h(
        "p",
        { class: "lead" },
        "A run is the score of a model on a data set, counted batch by batch. Runs on the same data set are ranked here, with their intervals.",
      ),
      [...filters].length > 0 &&
        h(
          "p",
          { class: "row" },
          [...filters].map(([name, value]) => h("span", { class: "chip" }, `${name}: ${value}`)),
          h("a", { href: href("/runs") }, "All runs"),
        ),
    ),
    board,
    more,
    selection.element,
  );
  take(first);
  await show();
  const timer = setInterval(() => document.hidden || refresh(), EVERY_MS);
  onAbort(signal, () => clearInterval(timer));

  function page(after) {
    const asked = new URLSearchParams([["limit", PAGE], ...filters, ...(after ? [["after", after]] : [])]);
    return api.json(`/v1/runs?${asked}`, signal);
  }

  function take(found) {
    for (const run of found.runs) runs.set(keyOf(run), run);
  }

  async function showMore() {
    const found = await page(next);
    take(found);
    next = found.next;
    await show(found);
  }

  /** Ask again while there is no run, or while one is open. */
  async function refresh() {
    if (isBusy || (runs.size && ![...runs.values()].some(({ status }) => status === "open"))) return;
    isBusy = true;
    try {
      const found = await page();
      for (const [key, run] of runs) if (run.status === "open") runs.delete(key); // it may have been deleted
      take(found);
      await show();
    } catch (error) {
      if (error.name !== "AbortError" && !(error instanceof api.Problem)) throw error;
    } finally {
      isBusy = false;
    }
  }

  async function show(found = first) {
    next = found.next;
    more.hidden = next === null;
    selection.element.hidden = runs.size < 2;
    if (!runs.size)
      return patch(board, [...filters].length ? h("p", { class: "quiet" }, "No run matches.") : noRuns(context));
    const sets = Map.groupBy(
      [...runs.values()].sort((a, b) => (a.created < b.created ? 1 : -1)),
      (run) => datasetOf(run) ?? "",
    );
    const names = [...sets.keys()].sort((a, b) => (a === "") - (b === "")); // runs without a data set are last
    for (const name of names) if (!groups.has(name)) groups.set(name, group(name, { better, selection, ...context }));
    patch(
      board,
      names.map((name) => groups.get(name).element),
    );
    await Promise.all([...sets].map(([name, members]) => groups.get(name).show(members)));
  }
}
