/** Runs against a baseline: what differs, how surely, and the verdict in a sentence. */

import { h, icon, patch } from "../dom.js";
import { follow } from "../follow.js";
import { addressOf, counted, percent } from "../scores.js";
import { sentence } from "../words.js";
import { curves } from "./compare/curves.js";
import { differences } from "./compare/differences.js";
import { entries } from "./compare/entries.js";

export async function render(root, context) {
  const { api, query, href, signal, title } = context;
  const names = query.getAll("run");
  const owner = query.get("owner");
  title(names.length > 1 ? names.join(", ") : "Compare runs");
  const facts = h("div", { class: "title" }, h("p", { class: "quiet" }, "Comparing the runs …"));
  const body = h("div", { class: "stage" });
  root.append(
    h(
      "header",
      { class: "title" },
      h("a", { class: "back", href: href("/runs") }, icon("back"), "All runs"),
      h("h1", {}, "Compare runs"),
      facts,
    ),
    body,
  );
  if (names.length < 2) {
    const list = h("a", { href: href("/runs") }, "the list");
    facts.replaceChildren(h("p", { class: "lead" }, "Choose two or more runs in ", list, "."));
    return;
  }
  const overlaid = curves(context);
  const parts = new Map(); // by the run that is compared with the baseline
  try {
    await follow(`/v1/compare?${query}`, show, context);
  } catch (error) {
    if (error.status !== 409 || !(error instanceof api.Problem)) throw error;
    facts.replaceChildren(...refused(error));
  }

  async function show(document) {
    const [baseline, ...others] = document.runs;
    for (const { run } of others) if (!parts.has(run)) parts.set(run, differences());
    patch(
      facts,
      document.comparisons.map((comparison) =>
        h("p", { class: "lead sentence", "data-key": comparison.run }, together(`${comparison.sentence}.`)),
      ),
      h("p", { class: "small quiet" }, how(document)),
      provisional(document) && h("p", { class: "small" }, "A run is open, so the comparison may change."),
      others.length === 1 &&
        h("p", { class: "row" }, h("a", { class: "button plain", href: href("/compare", swapped()) }, "Swap")),
    );
    patch(
      body,
      entries(document, { href }),
      document.comparisons.map(({ run }) => parts.get(run).element),
      overlaid.element,
    );
    for (const comparison of document.comparisons) parts.get(comparison.run).show(comparison, baseline, document);
    await Promise.all([overlaid.show(document), detail(document)]);
    return provisional(document);
  }

  /** Ask for slices and classes apart: they take longer, and with them p is corrected for more than the metrics. */
  async function detail({ comparisons, level }) {
    const detailed = new URLSearchParams([...query, ["classes", "true"], ["slices", "true"]]);
    let found = [];
    try {
      found = (await api.json(`/v1/compare?${detailed}`, signal)).comparisons;
    } catch (error) {
      if (!(error instanceof api.Problem)) throw error;
    }
    for (const [i, { run }] of comparisons.entries()) parts.get(run).detail(found[i] ?? null, level);
  }

  /** The query with the runs in reverse order. */
  function swapped() {
    return ["run", "owner"].flatMap((name) =>
      query
        .getAll(name)
        .reverse()
        .map((value) => [name, value]),
    );
  }

  /** Why the runs cannot be compared, with links to each. */
  function refused(problem) {
    const apart = problem.further.runs ?? [];
    return [
      h(
        "div",
        { class: "notice", role: "alert" },
        h("h2", {}, "These runs cannot be compared"),
        apart.length > 1
          ? h(
              "ul",
              { class: "references" },
              apart.map(({ run, detail }) => h("li", {}, h("strong", {}, run), ": ", detail)),
            )
          : h("p", {}, sentence(apart[0]?.detail ?? problem.message)),
        mayBeUnpaired(problem) &&
          h(
            "p",
            {},
            h("a", { href: href("/compare", [...query, ["unpaired", "true"]]) }, "Compare them as independent samples"),
            ". This comparison is less sensitive.",
          ),
        problem.page && h("p", {}, h("a", { href: problem.page }, "What this error means")),
      ),
      h(
        "ul",
        { class: "references" },
        names.map((run) => h("li", {}, h("a", { class: "mono name", href: href(...addressOf({ run, owner })) }, run))),
      ),
    ];
  }
}

/** Whether only the rows differ, so that a comparison without pairs is possible. */
const mayBeUnpaired = ({ further: { differs = [] } }) =>
  differs.length > 0 && differs.every((name) => ["rows", "targets", "pairing"].includes(name));

/** The same sentence, whose numbers stay on the line of their sign of percent or their p. */
const together = (text) =>
  text.split(/(\d+ %|p [<=] [^\s,)]+)/).map((piece, i) => (i % 2 ? h("span", { class: "unbroken" }, piece) : piece));

const provisional = ({ runs }) => runs.some((run) => run.provisional);

/** How the numbers came about. */
function how({ paired, groups, rows, level }) {
  const start = paired
    ? `Paired on the same ${counted(rows ?? 0, "row")}`
    : "Not paired, because the runs have different rows";
  return `${start}; intervals of ${percent(level)} from ${groups} groups of rows; p is corrected for the number of metrics (Holm).`;
}
