/**
 * The home page: what the service does, then all losses by family, each with its curve, and a search: words at once,
 * names that the service knows a moment later.
 */

import { byRows, draw } from "../curve.js";
import { inline } from "../documentation.js";
import { copyButton, h, icon } from "../dom.js";
import { latest } from "../latest.js";
import { onAbort } from "../signals.js";
import { byTask, FAMILY_NAMES, familyOf, taskName } from "../words.js";

const POINTS = { rows: 61, single: 21 };
const PATIENCE_MS = 1000;
const NOTHING = { losses: [], metrics: [], note: null };

export async function render(root, { api, plots, href, navigate, query, announce, signal, whenReady }) {
  const losses = await api.losses();
  const tasks = [...new Set(losses.map((loss) => loss.task))];

  const input = h("input", {
    type: "search",
    id: "search",
    placeholder: "Search: focal, boxes, Lin et al. …",
    value: query.get("q") ?? "",
    "aria-label": "Search the losses",
    autocomplete: "off",
    spellcheck: "false",
    maxlength: 200,
    oninput: filter,
  });
  const task = h(
    "select",
    { "aria-label": "Task", onchange: filter },
    h("option", { value: "" }, "All tasks"),
    tasks.map((name) => h("option", { value: name }, taskName(name))),
  );
  task.value = query.get("task") ?? "";
  const groups = FAMILY_NAMES.map((name) => {
    const tiles = byTask(name, losses).map((loss) => tile(loss, href));
    const list = h(
      "ul",
      { class: "tiles" },
      tiles.map(({ element }) => element),
    );
    const count = h("span", { class: "quiet" });
    const heading = h("h2", { tabindex: -1 }, name, count);
    const reach = () => {
      heading.scrollIntoView();
      heading.focus({ preventScroll: true });
    };
    const chip = h("button", { type: "button", class: "chip", onclick: reach }, name);
    return { tiles, list, count, chip, element: h("section", { class: "group" }, heading, list) };
  });
  const nothing = h("p", { class: "quiet", hidden: true }, "No loss matches.");
  const meaning = h("p", { class: "quiet", id: "meaning", hidden: true });
  const request = example();
  const lists = h(
    "div",
    { class: "groups" },
    groups.map(({ element }) => element),
  );

  root.append(
    h(
      "section",
      { class: "hero" },
      h(
        "div",
        { class: "more" },
        h("h1", {}, `${losses.length} losses`),
        h(
          "p",
          {},
          "Send predictions and targets over HTTP, from any language. Get the loss, its gradient and metrics.",
        ),
        h(
          "ul",
          { class: "doors" },
          door("Explore", "See how a loss changes with its parameters.", href("/losses/focal")),
          door("Your data", "Paste numbers or drop files.", href("/try")),
          door("Docs", "Guides, recipes and every route.", "manual"),
        ),
      ),
      h(
        "div",
        { class: "card request-card" },
        h("pre", { class: "request", tabindex: 0, role: "region", "aria-label": "A request" }, h("code", {}, request)),
        copyButton(() => request),
      ),
    ),
    h(
      "nav",
      { class: "chips", "aria-label": "Families" },
      groups.map(({ chip }) => chip),
    ),
    h(
      "div",
      { class: "row", role: "search" },
      h("div", { class: "search" }, icon("search"), input, h("kbd", { "aria-hidden": "true" }, "/")),
      h("div", { class: "filter" }, task),
    ),
    meaning,
    lists,
    nothing,
  );

  /** Show what has the words, and what the service found by names, which comes first. */
  function show(found) {
    const words = input.value
      .toLowerCase()
      .split(/[\s_]+/)
      .filter(Boolean);
    const rank = new Map(found.losses.map(({ name }, i) => [name, i]));
    const named = words.join("_");
    if (!rank.size && losses.some(({ name }) => name === named)) rank.set(named, 0);
    const place = ({ loss }) => rank.get(loss.name) ?? losses.length; // the others stay in their order
    const absent = found.note && !found.losses.length;
    let total = 0;
    for (const group of groups) {
      let shown = 0;
      group.place = Number.POSITIVE_INFINITY;
      for (const tile of group.tiles) {
        const { element, loss, text } = tile;
        const matches = rank.has(loss.name) || (!absent && words.every((word) => text.includes(word)));
        const fits = matches && (!task.value || task.value === loss.task);
        element.hidden = !fits;
        shown += fits;
        if (rank.has(loss.name)) group.place = Math.min(group.place, place(tile));
      }
      group.element.hidden = !shown;
      group.chip.hidden = !shown;
      group.count.textContent = shown;
      total += shown;
    }
    if (!lists.contains(document.activeElement)) {
      for (const { tiles, list } of groups)
        list.append(...tiles.toSorted((a, b) => place(a) - place(b)).map(({ element }) => element));
      lists.append(...groups.toSorted((a, b) => a.place - b.place || 0).map(({ element }) => element));
    }
    nothing.hidden = total > 0;
    const metrics = [...new Set(found.metrics.map(({ name }) => name))];
    const says = [
      found.note && `${input.value.trim()}: ${found.note}.`,
      metrics.length && `Metrics: ${metrics.join(", ")}.`,
    ];
    meaning.textContent = says.filter(Boolean).join(" ");
    meaning.hidden = !meaning.textContent;
    return total;
  }

  const search = latest(async (stop) => {
    const query = input.value.trim();
    if (!query) return;
    let found;
    try {
      found = await api.json(`/v1/losses?q=${encodeURIComponent(query)}`, stop);
    } catch (error) {
      if (error instanceof api.Problem) return; // the words have been searched for
      throw error;
    }
    if (query !== input.value.trim()) return;
    const total = show(found);
    if (document.activeElement === input) announce(countSentence(total));
  }, signal);

  const countSentence = (total) =>
    [`${total} ${total === 1 ? "loss" : "losses"}`, meaning.textContent].filter(Boolean).join(". ");

  function filter() {
    const total = show(NOTHING);
    navigate(
      "/losses",
      { ...(input.value && { q: input.value }), ...(task.value && { task: task.value }) },
      { replace: true },
    );
    if (this) announce(countSentence(total));
    search();
  }
  filter();
  drawWhenSeen(
    groups.flatMap(({ tiles }) => tiles),
    { api, plots, signal, whenReady },
  );

  addEventListener(
    "keydown",
    (event) => {
      if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.matches("input, select, textarea"))
        return;
      event.preventDefault();
      input.focus();
    },
    { signal },
  );
}

const door = (name, text, to) => h("li", {}, h("a", { href: to }, h("strong", {}, name), h("span", {}, text)));

/** A request as a command. */
function example() {
  const url = new URL("v1/evaluate", location.href.split("#")[0]);
  const body = '{"loss": "huber", "inputs": {"prediction": [2.5, 0.0, 7.1], "target": [3.0, -0.5, 2.0]}}';
  return `curl -s ${url} \\\n  -H 'Content-Type: application/json' \\\n  -d '${body}'`;
}

/** Draw a tile's curve when the tile becomes visible, and again when the service recovers. */
function drawWhenSeen(tiles, { api, plots, signal, whenReady }) {
  const lossOf = new Map(tiles.map((tile) => [tile.thumb, tile.loss]));
  const missing = new Set();
  const ask = async (thumb) => {
    if (!(await thumbnail(thumb, lossOf.get(thumb), { api, plots, signal }))) missing.add(thumb);
  };
  whenReady(() => {
    const again = [...missing];
    missing.clear();
    again.forEach(ask);
  });
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        observer.unobserve(target);
        ask(target);
      }
    },
    { rootMargin: "200px" },
  );
  for (const thumb of lossOf.keys()) observer.observe(thumb);
  const all = () => Promise.all([...lossOf.keys()].filter((thumb) => !thumb.classList.contains("drawn")).map(ask));
  matchMedia("print").addEventListener("change", ({ matches }) => matches && all(), { signal });
  addEventListener(
    "keydown",
    async (event) => {
      if (event.key !== "p" || !(event.ctrlKey || event.metaKey) || event.shiftKey || event.altKey) return;
      event.preventDefault(); // a browser prints at once what is drawn
      await all();
      print();
    },
    { signal },
  );
  onAbort(signal, () => observer.disconnect());
}

/** Fill a tile; return false if it has to wait for the service. */
async function thumbnail(element, loss, { api, plots, signal }) {
  const [axis] = loss.available ? loss.axes : [];
  const none = (text) => element.replaceChildren(h("span", { class: "none" }, text));
  const late = setTimeout(() => none("Waiting for the service"), PATIENCE_MS);
  try {
    if (!axis) none(loss.available ? "No curve: the loss takes whole images" : "Not available here");
    else {
      const { x, values } = await draw(
        { loss, axis, parameters: {} },
        { api, signal, points: byRows(loss) ? POINTS.rows : POINTS.single },
      );
      element.replaceChildren(plots.thumbnail(x, values));
    }
  } catch (error) {
    if (error.name === "AbortError") return true;
    none(error.passing ? "Waiting for the service" : (error.title ?? "No answer"));
    if (error.passing) return false;
  } finally {
    clearTimeout(late);
  }
  element.classList.add("drawn");
  return true;
}

function tile(loss, href) {
  const thumb = h("div", { class: "thumb" });
  const element = h(
    "li",
    {},
    h(
      "article",
      { class: "tile" },
      thumb,
      h("h3", {}, h("a", { href: href(`/losses/${loss.name}`) }, loss.name)),
      h("p", {}, inline(loss.summary)),
    ),
  );
  const text = [
    loss.name,
    taskName(loss.task),
    familyOf(loss.task),
    loss.documentation,
    ...Object.keys(loss.parameters),
  ]
    .join(" ")
    .toLowerCase();
  return { loss, thumb, element, text };
}
