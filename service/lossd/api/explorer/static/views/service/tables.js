/** Tables of the requests: by stage, by size of batch or latency, by loss. */

import { h } from "../../dom.js";
import { seconds, whole } from "./numbers.js";
import { STAGES } from "./readings.js";

export function fillStages(element, now, recent) {
  const answered = now.answered - (recent?.answered ?? 0);
  const mean = Object.fromEntries(
    Object.keys(STAGES).map((name) => [
      name,
      answered ? (now.stages[name] - (recent?.stages[name] ?? 0)) / answered : 0,
    ]),
  );
  const whole = Object.values(mean).reduce((sum, v) => sum + v, 0);
  if (!whole) return element.replaceChildren(h("p", { class: "quiet" }, "No requests yet."));
  const color = (i) => ({
    "--color": `var(--curve-${i + 1})`,
    "--part": `${Math.max(0.4, (100 * Object.values(mean)[i]) / whole)}`,
  });
  const names = Object.keys(STAGES);
  return element.replaceChildren(
    h(
      "div",
      { class: "stack", "aria-hidden": "true" },
      names.map((_, i) => h("span", { style: color(i) })),
    ),
    h(
      "table",
      { class: "plain" },
      h(
        "tbody",
        {},
        names.map((name, i) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, h("span", { class: "swatch square", style: color(i) }), STAGES[name]),
            h("td", { class: "number" }, seconds(mean[name])),
            h("td", { class: "number quiet" }, `${Math.round((100 * mean[name]) / whole)} %`),
          ),
        ),
      ),
    ),
  );
}

export function fillBars(element, entries) {
  const used = entries.filter(({ count: n }) => n);
  if (!used.length) return element.replaceChildren(h("p", { class: "quiet" }, "No requests yet."));
  const shown = entries.slice(entries.indexOf(used[0]), entries.indexOf(used.at(-1)) + 1);
  const most = Math.max(...shown.map(({ count: n }) => n));
  return element.replaceChildren(
    h(
      "table",
      { class: "plain" },
      h(
        "tbody",
        {},
        shown.map(({ name, count: n }) =>
          h(
            "tr",
            {},
            h("th", { scope: "row", class: "number" }, name),
            h(
              "td",
              { class: "bar-cell", "aria-hidden": "true" },
              n > 0 && h("span", { style: { "--part": `${(100 * n) / most}%` } }),
            ),
            h("td", { class: "number" }, whole(n)),
          ),
        ),
      ),
    ),
  );
}

export function fillLosses(element, samples, { href }) {
  const counts = new Map();
  for (const { labels, value } of samples.get("lossd_requests_total") ?? []) {
    const row = counts.get(labels.loss) ?? { ok: 0, refused: 0 };
    if (labels.outcome === "ok") row.ok += value;
    else row.refused += value;
    counts.set(labels.loss, row);
  }
  const rows = [...counts].sort(([, a], [, b]) => b.ok + b.refused - a.ok - a.refused).slice(0, 10);
  if (!rows.length) return element.replaceChildren(h("p", { class: "quiet" }, "No requests yet."));
  return element.replaceChildren(
    h(
      "table",
      { class: "plain" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, "Loss"),
          h("th", { scope: "col", class: "number" }, "answered"),
          h("th", { scope: "col", class: "number" }, "refused"),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map(([loss, { ok, refused }]) =>
          h(
            "tr",
            {},
            h(
              "th",
              { scope: "row" },
              loss ? h("a", { class: "mono", href: href(`/losses/${loss}`) }, loss) : "without a loss",
            ),
            h("td", { class: "number" }, whole(ok)),
            h("td", { class: "number" }, whole(refused)),
          ),
        ),
      ),
    ),
  );
}
