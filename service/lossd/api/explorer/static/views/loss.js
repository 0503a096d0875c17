/** One loss: its formula, its curves and its documentation. */

import { inline } from "../documentation.js";
import { h, icon, scrollRegion } from "../dom.js";
import { formula } from "../formula.js";
import { taskName } from "../words.js";
import { curves } from "./loss/curves.js";
import { documentation } from "./loss/documentation.js";
import { advice, symbolList } from "./loss/guide.js";

export async function render(root, context) {
  const {
    api,
    parameters: { name },
    href,
    title,
  } = context;
  const page = api.catalogue(`/v1/losses/${encodeURIComponent(name)}`);
  const [losses, { guide, ...entry }] = await Promise.all([api.losses(), page]);
  const loss = losses.find((listed) => listed.name === name) ?? entry;
  title(loss.name);
  const equation = h("div", {});
  const equations = scrollRegion("The formula", equation);
  equations.classList.add("formula");
  root.append(
    h(
      "header",
      { class: "title" },
      h("a", { class: "back", href: href("/losses") }, icon("back"), "All losses"),
      h(
        "div",
        { class: "row" },
        h("h1", { class: "mono" }, loss.name),
        h("a", { class: "chip", href: href("/losses", { task: loss.task }) }, taskName(loss.task)),
      ),
      h("p", { class: "lead" }, inline(guide.idea)),
      loss.formula && equations,
      symbolList(guide),
    ),
  );
  if (loss.formula) await formula(equation, loss.formula);
  if (!loss.available) root.append(h("div", { class: "notice" }, h("p", {}, loss.unavailable_because)));
  const texts = advice(guide);
  if (loss.available && loss.axes.length) await curves(root, context, loss, losses, texts);
  else root.append(h("p", { class: "quiet" }, "This loss depends on more than one number, so it has no curve."), texts);
  root.append(documentation(loss));
}
