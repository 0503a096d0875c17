/** How a run was judged: its signature to copy, its definition, its fingerprints. */

import { h, icon, patch } from "../../dom.js";
import { figure } from "../../plots.js";
import { sliceName, timeText, whole } from "../../scores.js";

/** The section: `{ element, show(document) }`. */
export function judged({ announce }) {
  const label = h("span", {}, "Copy");
  const copy = h("button", { type: "button", class: "plain", onclick }, icon("copy"), label);
  const line = h("pre", { class: "request", tabindex: 0, role: "region", "aria-label": "The signature" });
  const body = h("dl", { class: "facts-list" });
  const signature = h(
    "div",
    { class: "more" },
    h(
      "p",
      { class: "small quiet" },
      "The signature states the definition, the rows and the targets in one line. Publish it with the numbers.",
    ),
    line,
    h("p", { class: "row" }, copy),
  );
  const element = h("section", { class: "card more" }, h("h2", {}, "Definition"), signature, body);

  async function onclick() {
    await navigator.clipboard.writeText(line.textContent);
    announce("Copied");
    label.textContent = "Copied";
  }

  function show(document) {
    signature.hidden = !document.signature;
    if (line.textContent !== (document.signature ?? "")) line.textContent = document.signature ?? "";
    patch(
      body,
      facts(document)
        .filter(([, value]) => value !== null && value !== undefined && value !== "")
        .map(([name, value]) =>
          h("div", { class: FINGERPRINTS.has(name) ? "wide" : null }, h("dt", {}, name), h("dd", {}, value)),
        ),
    );
  }

  return { element, show };
}

const FINGERPRINTS = new Set(["targets", "state", "definition"]);
const IDENTITIES = { position: "by position", id: "by sample_id", batch: "by batch" };

function facts({ loss, metrics, identity, groups, slices, crossed, result, digest, created, sealed, scope, limit }) {
  const { name: _, ...parameters } = loss ?? {};
  const { names, ...options } = metrics ?? {};
  return [
    ["metrics", names?.join(", ") ?? (names === undefined ? "default" : null)],
    ...Object.entries({ ...parameters, ...options }).map(([name, value]) => [
      name.replaceAll("_", " "),
      typeof value === "number" ? figure(value) : typeof value === "string" ? value : JSON.stringify(value),
    ]),
    ["rows identified", IDENTITIES[identity] ?? identity],
    ["groups of rows", groups === undefined ? null : whole(groups)],
    [
      "slices",
      Object.keys(slices ?? {}).length
        ? sliceName(Object.fromEntries(Object.entries(slices).map(([name, values]) => [name, values.join(" | ")])))
        : null,
    ],
    ["crossed", crossed?.map((names) => names.join(" × ")).join(", ")],
    ["scope", scope === "rows" ? null : scope],
    ["most distinct scores", limit === undefined ? null : whole(limit)],
    ["created", timeText(created)],
    ["sealed", sealed ? timeText(sealed) : null],
    ["targets", result?.targets],
    ["state", result?.digest],
    ["definition", digest],
  ];
}
