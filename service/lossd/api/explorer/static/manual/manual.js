/** What the manual does beyond its text: the bar's views, the theme, buttons that copy, and the search. */

import { announce, faded, h, icon } from "../dom.js";
import { theme } from "../theme.js";
import { VIEWS } from "../views/index.js";
import { search } from "./search.js";

const root = document.documentElement.dataset.root;
const THEMES = { system: "contrast", light: "sun", dark: "moon" };

function showViews() {
  const links = VIEWS.filter((view) => view.nav).map((view) => h("a", { href: `${root}#${view.path}` }, view.title));
  document.getElementById("nav").append(...links);
}

function showTheme() {
  const button = document.getElementById("theme");
  button.hidden = false;
  button.replaceChildren(icon(THEMES[theme.choice]));
  button.title = `Theme: ${theme.choice}`;
  button.setAttribute("aria-label", button.title);
}

function addCopying(block) {
  const copy = async () => {
    await navigator.clipboard.writeText(block.textContent);
    announce("Copied");
  };
  const button = h("button", { type: "button", class: "tiny", title: "Copy", "aria-label": "Copy", onclick: copy });
  button.append(icon("copy"));
  const frame = h("div", { class: "copied" });
  block.replaceWith(frame);
  frame.append(faded(block), button);
}

function addSearch() {
  const field = document.getElementById("find");
  const found = document.getElementById("found");
  let index = null;
  field.parentElement.hidden = false;
  const load = () => {
    index ??= fetch(`${root}manual/search.json`).then((answer) => answer.json());
    return index;
  };
  const show = async () => {
    const query = field.value;
    const sections = query.trim() ? search(await load(), query) : [];
    if (field.value !== query) return;
    found.hidden = !query.trim();
    found.replaceChildren(...(sections.length ? sections.map(result) : [h("li", {}, h("p", {}, "No results."))]));
  };
  field.addEventListener("focus", load, { once: true });
  field.addEventListener("input", show);
  field.parentElement.addEventListener("keydown", (event) => {
    const links = [field, ...found.querySelectorAll("a")];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      links[Math.max(0, Math.min(links.length - 1, links.indexOf(document.activeElement) + step))].focus();
    } else if (event.key === "Enter" && event.target === field) links[1]?.click();
    else if (event.key === "Escape") {
      found.hidden = true;
      field.focus();
    }
  });
  addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select");
    if ((event.key === "/" && !typing) || (event.key === "k" && (event.ctrlKey || event.metaKey))) {
      event.preventDefault();
      field.focus();
    }
  });
  addEventListener("click", (event) => {
    if (!field.parentElement.contains(event.target) || event.target.closest("a")) found.hidden = true;
  });
}

function result({ page, heading, address, excerpt }) {
  return h(
    "li",
    {},
    h(
      "a",
      { href: `${root}${address}` },
      h("strong", {}, heading),
      h("span", { class: "quiet small" }, page === heading ? excerpt : `${page}: ${excerpt}`),
    ),
  );
}

showViews();
showTheme();
document.getElementById("theme").addEventListener("click", () => {
  theme.next();
  showTheme();
  announce(document.getElementById("theme").title);
});
for (const block of document.querySelectorAll("main pre")) addCopying(block);
for (const region of document.querySelectorAll("main .scroll")) faded(region);
if (document.getElementById("find")) addSearch();
if (matchMedia("(max-width: 50rem)").matches) document.querySelector(".manual aside details")?.removeAttribute("open");
