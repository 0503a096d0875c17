/** One run: its score with intervals, the rows it has counted, its classes, slices and curves, and how it was judged. */

import { h, icon, patch } from "../dom.js";
import { follow } from "../follow.js";
import { counted, datasetOf, directions, pathOf, subjectOf, timeText } from "../scores.js";
import { batches } from "./run/batches.js";
import { classes } from "./run/classes.js";
import { coverage } from "./run/coverage.js";
import { judged } from "./run/judged.js";
import { others } from "./run/others.js";
import { pictures } from "./run/pictures.js";
import { score } from "./run/score.js";
import { slices } from "./run/slices.js";

export async function render(root, context) {
  const { api, parameters, query, href, title } = context;
  const { name } = parameters;
  const owner = query.get("owner");
  title(name);
  const better = directions(await api.metrics());
  const parts = { better, owner, ...context };
  const facts = h("div", { class: "title" });
  const sections = [
    score(parts),
    coverage(parts),
    slices(parts),
    classes(parts),
    pictures(parts),
    judged(parts),
    batches(parts),
  ];
  const header = h(
    "header",
    { class: "title" },
    h("a", { class: "back", href: href("/runs") }, icon("back"), "All runs"),
    h("h1", { class: "mono" }, name),
    facts,
    others(parts),
  );

  const waiting = h("p", { class: "quiet" }, "Computing the score …");
  root.append(header, waiting);
  await follow(pathOf(name, owner), show, context);

  async function show(document) {
    if (waiting.isConnected) waiting.replaceWith(...sections.map(({ element }) => element));
    const { result, status } = document;
    patch(
      facts,
      h(
        "p",
        { class: "row tight" },
        h("span", { class: "chip", "data-tone": status === "open" ? "warn" : "good" }, status),
        h("span", { class: "chip" }, subjectOf(document)),
        datasetOf(document) &&
          h("a", { class: "chip", href: href("/runs", { dataset: datasetOf(document) }) }, datasetOf(document)),
        Object.entries(document.tags ?? {}).map(([tag, value]) => h("span", { class: "chip" }, `${tag}: ${value}`)),
      ),
      h(
        "p",
        { class: "lead" },
        `${counted(document.counted.rows, "row")} in ${counted(document.counted.batches, "batch")}, `,
        status === "sealed"
          ? `sealed ${timeText(document.sealed)}.`
          : `last changed ${timeText(document.touched)}. The run is open, so its score may change.`,
      ),
      document.problem && h("div", { class: "notice" }, h("p", {}, document.problem)),
      !result &&
        !document.problem &&
        h("p", { class: "quiet" }, "No rows are counted yet. The score appears with the first batch."),
    );
    await Promise.all(sections.map((section) => section.show(document)));
    return status === "open" && !document.problem;
  }
}
