/** An answer of POST /v1/evaluate as sections: loss, diagnostics, metrics, gradients, Hessians. */

import { confusion, isMatrix } from "./confusion.js";
import { aligned } from "./decimals.js";
import { h, scrollRegion, warningList } from "./dom.js";
import { picture } from "./heat.js";
import { short } from "./plots.js";

const AVERAGES = { macro: "macro average", micro: "micro average", weighted: "weighted by support" };
const OTHERS = ["task", "undefined"];
const NAMED_MOST = 12;
const WHOLE = new Set(["valid_count"]);

const NAMES = { non_finite_gradient_entries: "non-finite gradients" };
const words = (name) => NAMES[name] ?? name.replaceAll("_", " ");
const title = (name) => (name === "loss" ? "Loss" : words(name));
const isNumber = (value) => typeof value === "number" || value === null;
const isWord = (value) => typeof value === "boolean" || typeof value === "string";
const isPerClass = (value) => value !== null && typeof value === "object" && Array.isArray(value.per_class);
const cell = (value) =>
  value === null || value === undefined
    ? h("td", { class: "number quiet", title: "undefined: 0/0" }, "–")
    : h("td", { class: "number" }, typeof value === "number" ? short(value) : String(value));

/**
 * The sections of an answer; `canvas` is `{ theme, signal, hasClasses(input) }` for the pictures. An answer without a loss
 * is headed by a metric: the first number among those of `rated`, which are names, or the first of all.
 */
export function answered(answer, { rated = null, ...canvas }) {
  const { metrics } = answer;
  const plain = rated ? plainOf(metrics) : [];
  const best = plain.find(([name, value]) => rated.includes(name) && typeof value === "number") ?? plain[0];
  const [name, value] = rated ? (best ?? ["metrics"]) : ["loss", answer.loss];
  const others = plain.filter((entry) => entry !== best);
  const plainNames = plain.map(([metric]) => metric);
  const cards = metrics ? [scores(metrics, plainNames), confusionCard(metrics, canvas)].filter(Boolean) : [];
  return [
    summary(answer, { name, value, others }),
    cards.length > 0 && h("div", { class: "pair" }, cards),
    typeof answer.loss === "object" &&
      answer.loss &&
      h(
        "section",
        { class: "card more" },
        h("h2", {}, "Loss, unreduced ", shapeOf(answer.loss)),
        picture(answer.loss, { label: "The unreduced loss", ...canvas }),
      ),
    derivatives(answer.gradients, "Gradient", canvas),
    derivatives(answer.hessians, "Hessian diagonal", canvas),
  ]
    .flat()
    .filter(Boolean);
}

const derivatives = (byInput, what, canvas) =>
  Object.entries(byInput).map(([input, values]) =>
    h(
      "section",
      { class: "card more" },
      h("h2", {}, `${what} of `, h("code", {}, input), " ", shapeOf(values)),
      picture(values, { label: `The ${what.toLowerCase()} of ${input}`, ...canvas, classes: canvas.hasClasses(input) }),
    ),
  );

/** The metrics that are one number, or no number because they are undefined. */
const plainOf = (metrics) =>
  Object.entries(metrics).filter(([name, value]) => !OTHERS.includes(name) && (isNumber(value) || isWord(value)));

const shapeOf = ({ shape }) => h("span", { class: "quiet small number" }, shape.join(" × ") || "a number");

/** The loss or a metric in seven digits, with all digits as its title, the other metrics `others`, and the diagnostics. */
function summary({ loss, reduction, diagnostics, metrics, gradients, hessians, ...extra }, { name, value, others }) {
  const number = typeof value === "number";
  const about = Object.entries(diagnostics ?? {})
    .filter(([fact]) => fact !== "warnings")
    .flatMap(([fact, value]) => spread(words(fact), value, WHOLE.has(fact)));
  const more = [...Object.entries(extra), ...others].flatMap(([fact, value]) => spread(words(fact), value));
  return h(
    "section",
    { class: "card verdict", "aria-label": title(name) },
    h(
      "div",
      {},
      h("h2", {}, title(name)),
      h(
        "p",
        {
          class: "huge number",
          id: "loss",
          "data-value": number ? String(value) : null,
          title: number ? String(value) : null,
        },
        number ? digits(value) : name === "loss" ? (value === undefined ? "not computed" : "unreduced") : word(value),
      ),
      reduction &&
        number &&
        h("p", { class: "small quiet number" }, `${short(reduction.numerator)} over ${short(reduction.denominator)}`),
    ),
    h(
      "dl",
      { class: "facts-list" },
      [...about, ...more].map(([fact, text, state]) =>
        h("div", { class: state }, h("dt", {}, fact), h("dd", { class: "number" }, text)),
      ),
    ),
    warningList(diagnostics?.warnings),
  );
}

const digits = (value) =>
  Number.isFinite(value) ? String(Number(value.toPrecision(7))).replace("-", "−") : short(value);

/** A metric as text. */
const word = (value) => (value === null ? "undefined" : typeof value === "number" ? short(value) : String(value ?? ""));

/** A value as pairs of a name and a text. */
function spread(name, value, whole = false) {
  if (Array.isArray(value))
    return [[name, value.every(isNumber) ? value.map((entry) => short(entry)).join(", ") : JSON.stringify(value)]];
  if (value !== null && typeof value === "object")
    return Object.entries(value).flatMap(([part, entry]) =>
      spread(Object.keys(value).length > 1 ? `${name}, ${words(part)}` : name, entry),
    );
  if (typeof value === "boolean") return [[name, value ? "yes" : "no", value || name !== "finite" ? null : "bad"]];
  return [[name, whole ? value.toLocaleString("en") : word(value)]];
}

/** The metrics apart from those that are told elsewhere. */
function scores(metrics, plainNames) {
  const entries = Object.entries(metrics).filter(
    ([name, value]) => ![...OTHERS, ...plainNames].includes(name) && !isMatrix(value),
  );
  const classes = Math.max(0, ...entries.map(([, value]) => (isPerClass(value) ? value.per_class.length : 0)));
  const columns = entries.filter(
    ([, value]) =>
      isPerClass(value) || (classes && Array.isArray(value) && value.length === classes && value.every(isNumber)),
  );
  // The usual metrics come first, and counts of the confusion matrix last.
  const rank = (name) => ["precision", "recall", "f1", "iou", "support"].indexOf(name) + 1 || 9;
  columns.sort(([a], [b]) => rank(a) - rank(b));
  const rest = entries.filter((entry) => !columns.includes(entry));
  const plain = rest.filter(([, value]) => isNumber(value) || isWord(value));
  const odd = rest.filter((entry) => !plain.includes(entry));
  if (!entries.length) return null;
  return h(
    "section",
    { class: "card" },
    h("h2", {}, "Metrics ", h("span", { class: "quiet small" }, words(metrics.task))),
    plain.length > 0 &&
      h(
        "dl",
        { class: "facts-list" },
        plain.map(([name, value]) => h("div", {}, h("dt", {}, words(name)), h("dd", { class: "number" }, word(value)))),
      ),
    columns.length > 0 &&
      scrollRegion(
        "Metrics of each class",
        aligned(
          h(
            "table",
            { class: "classes" },
            h("caption", { class: "unseen" }, "Metrics of each class"),
            h(
              "thead",
              {},
              h(
                "tr",
                {},
                h("th", { scope: "col" }, "Class"),
                columns.map(([name]) => h("th", { scope: "col", class: "number" }, words(name))),
              ),
            ),
            h(
              "tbody",
              {},
              Array.from({ length: classes }, (_, i) =>
                h(
                  "tr",
                  {},
                  h("th", { scope: "row" }, i),
                  columns.map(([, value]) => cell((value.per_class ?? value)[i])),
                ),
              ),
            ),
            h(
              "tfoot",
              {},
              Object.entries(AVERAGES)
                .filter(([kind]) => columns.some(([, value]) => kind in value))
                .map(([kind, name]) =>
                  h(
                    "tr",
                    {},
                    h("th", { scope: "row" }, name),
                    columns.map(([, value]) => (kind in value ? cell(value[kind]) : h("td", {}))),
                  ),
                ),
            ),
          ),
        ),
      ),
    metrics.undefined &&
      Object.keys(metrics.undefined).length > 0 &&
      h("p", { class: "small quiet" }, `– means undefined (0/0): ${undefinedIn(metrics.undefined)}.`),
    odd.map(([name, value]) =>
      h(
        "details",
        {},
        h("summary", {}, words(name)),
        h("pre", { class: "request", tabindex: 0, role: "region", "aria-label": words(name) }, JSON.stringify(value)),
      ),
    ),
  );
}

function undefinedIn(found) {
  if (Array.isArray(found)) return found.join(", ");
  return Object.entries(found)
    .map(
      ([name, classes]) =>
        `${words(name)}${Array.isArray(classes) ? ` of class ${classes.slice(0, NAMED_MOST).join(", ")}${classes.length > NAMED_MOST ? ` and ${classes.length - NAMED_MOST} more` : ""}` : ""}`,
    )
    .join("; ");
}

function confusionCard({ confusion_matrix: matrix }, canvas) {
  if (!isMatrix(matrix)) return null;
  return h("section", { class: "card more" }, h("h2", {}, "Confusion matrix"), confusion(matrix, canvas));
}
