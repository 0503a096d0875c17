/** The landscape as numbers: where each path leads, and the surface. */

import { aligned } from "../../decimals.js";
import { h, scrollRegion } from "../../dom.js";
import { short } from "../../plots.js";
import { curveName } from "../../words.js";
import { GRID } from "./surface.js";

const SHOWN = 9; // grid lines in each direction

const heading = (name, attributes = {}) => h("th", { scope: "col", ...attributes }, name);
const cell = (value) => h("td", { class: "number" }, value);

/** The table of the paths; each path has its points and losses by step. */
export function pathsTable(state, paths, parameters, colorOf) {
  const heads = ["Loss", "at the start", `after ${state.steps} steps`, ...parameters];
  const row = (path, i) => {
    const steps = path.slice(0, state.steps + 1);
    const end = steps.at(-1);
    const losses = steps.map(({ loss }) => loss).filter((loss) => loss !== null);
    const { name, parameters: set } = state.losses[i];
    const swatch = h("span", { class: "swatch square", style: { "--color": `var(--${colorOf(i)})` } });
    return h(
      "tr",
      { "data-losses": JSON.stringify(losses), "data-at": JSON.stringify(steps.map(({ at }) => at)) },
      h("th", { scope: "row" }, swatch, curveName(name, set)),
      cell(short(path[0].loss)),
      cell(path.diverged ? "diverges" : short(end.loss ?? path.at(-2)?.loss)),
      end.at.map((value) => cell(short(value))),
    );
  };
  const head = heads.map((name, i) => heading(name, { class: i ? "number" : null }));
  return aligned(
    h(
      "table",
      { class: "classes", id: "paths" },
      h("caption", { class: "unseen" }, "The end of each path"),
      h("thead", {}, h("tr", {}, head)),
      h("tbody", {}, paths.map(row)),
    ),
  );
}

/** The surface as a table: every sixth line of the grid, the second parameter upwards. */
export function surfaceTable({ as, bs, values }, [across, up]) {
  const lines = Array.from({ length: SHOWN }, (_, i) => i * ((GRID - 1) / (SHOWN - 1)));
  const row = (j) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, short(bs[j])),
      lines.map((i) => cell(short(values[j * GRID + i]))),
    );
  const heads = lines.map((i) => heading(short(as[i]), { class: "number" }));
  const table = h(
    "table",
    { class: "numbers" },
    h("caption", { class: "unseen" }, `Loss by ${across}, in columns, and ${up}, in rows`),
    h("thead", {}, h("tr", {}, heading(`${up} ↓ ${across} →`), heads)),
    h("tbody", {}, lines.toReversed().map(row)),
  );
  return scrollRegion("The surface as numbers", table);
}
