/** The batches that a run has counted, in pages. */

import { h, scrollRegion } from "../../dom.js";
import { counted, pathOf, timeText, whole } from "../../scores.js";

const PAGE = 50;

/** The section: `{ element, show(document) }`. */
export function batches({ api, owner, signal, parameters: { name } }) {
  const rows = h("tbody");
  const region = scrollRegion(
    "Batches of the run",
    h(
      "table",
      { class: "numbers batches" },
      h("caption", { class: "unseen" }, "Batches in the order in which they were counted"),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, "batch"),
          h("th", { scope: "col", class: "number" }, "rows"),
          h("th", { scope: "col", class: "number" }, "first row"),
          h("th", { scope: "col" }, "counted"),
        ),
      ),
      rows,
    ),
  );
  const note = h("p", { class: "small quiet" });
  const further = h("button", { type: "button", class: "plain", onclick: more }, "Show more batches");
  const element = h(
    "details",
    { class: "card", ontoggle: opened, hidden: true },
    h("summary", {}, "Batches"),
    region,
    note,
    further,
  );
  let next = null;
  let total = 0;

  function show({ counted: { batches: all } }) {
    total = all;
    element.hidden = !all;
    tell();
  }

  async function opened() {
    if (!element.open || rows.children.length === total) return;
    rows.replaceChildren(); // batches that were counted since are behind the last page
    next = null;
    await more();
  }

  async function more() {
    const after = next ? `&after=${encodeURIComponent(next)}` : "";
    const [path, query = ""] = pathOf(name, owner).split("?");
    const page = await api.json(`${path}/batches?limit=${PAGE}${after}${query && `&${query}`}`, signal);
    next = page.next;
    rows.append(
      ...page.batches.map((batch) =>
        h(
          "tr",
          {},
          h("th", { scope: "row", class: "mono" }, batch.batch),
          h("td", { class: "number" }, whole(batch.counted.rows)),
          h("td", { class: "number" }, batch.first === null ? "–" : whole(batch.first)),
          h("td", {}, timeText(batch.counted_at)),
        ),
      ),
    );
    tell();
  }

  function tell() {
    const shown = rows.children.length;
    further.hidden = next === null;
    note.textContent = shown ? `${whole(shown)} of ${counted(total, "batch")}.` : "";
  }

  return { element, show };
}
