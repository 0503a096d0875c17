/** The curves of the compared runs, overlaid. */

import { DIAGRAMS, diagram, isDrawable } from "../../diagrams.js";
import { h } from "../../dom.js";
import { pathOf } from "../../scores.js";
import { picturesOf } from "../run/pictures.js";
import { colorOf } from "./entries.js";

const MOST = 6;

/** The section: `{ element, show(document) }` of a comparison. */
export function curves(context) {
  const { api, signal } = context;
  const element = h("div", { class: "pair", "data-key": "curves", hidden: true });
  const drawn = new Map();
  const known = new Map(); // the pictures of a run, by its digest

  async function show({ runs }) {
    const found = await Promise.all(runs.slice(0, MOST).map(pictures));
    for (const metric of Object.keys(DIAGRAMS)) {
      const lines = found
        .map((metrics, i) => ({ name: runs[i].run, color: colorOf(i), value: metrics[metric] }))
        .filter(({ value }) => isDrawable(value));
      if (lines.length < 2) continue;
      element.hidden = false;
      if (!drawn.has(metric)) {
        const card = diagram(metric, context);
        drawn.set(metric, card);
        element.append(card.element);
        await card.start();
      }
      drawn.get(metric).draw(lines);
    }
  }

  async function pictures({ run, owner, digest }) {
    if (!known.has(digest)) {
      try {
        const document = await api.json(pathOf(run, owner, { slices: "false" }), signal);
        known.set(digest, await picturesOf(document, { api, owner, signal }));
      } catch (error) {
        if (!(error instanceof api.Problem)) throw error;
        return {}; // the comparison stands without its curves
      }
    }
    return known.get(digest);
  }

  return { element, show };
}
