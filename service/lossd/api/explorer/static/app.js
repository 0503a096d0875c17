/** The shell: the bar, the theme, the dialog for a key, and the current view. */

import * as api from "./api.js";
import { announce, h, icon } from "./dom.js";
import * as plots from "./plots.js";
import { current, href, match, navigate } from "./router.js";
import { watch, whenReady } from "./status.js";
import { theme } from "./theme.js";
import { VIEWS } from "./views/index.js";

const HOME = "/losses";
const NEEDS = { losses: api.losses, plots: plots.uPlot };
const THEMES = {
  system: ["contrast", "Theme: system"],
  light: ["sun", "Theme: light"],
  dark: ["moon", "Theme: dark"],
};

const root = document.getElementById("view");
const scrolled = new Map(); // the scroll position of each view, restored on going back
let leave = new AbortController();
let shown = null;
let byLink = false;

async function show() {
  const { path, query } = current();
  if (path === "/") {
    navigate(HOME, query, { replace: true });
    return show();
  }
  const [view, parameters] = found(path);
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const stage = h("div", { class: "stage" });
  const moved = shown !== null && shown !== path;
  const [followed, before] = [byLink, scrolled.get(path) ?? 0];
  byLink = false;
  shown = path;
  mark(view?.under ?? path);
  try {
    if (!view) throw new api.Problem({ title: "Not found", detail: `There is no view at ${path}.`, status: 404 });
    title(view.title);
    const again = (callback) => whenReady(callback, signal);
    // A view that was left may still be loading: then it must not change the address and the title.
    const whileShown =
      (act) =>
      (...given) =>
        signal.aborted || act(...given);
    const context = {
      api,
      plots,
      theme,
      signal,
      parameters,
      query,
      path,
      navigate: whileShown(navigate),
      href,
      title: whileShown(title),
      announce: whileShown(announce),
      whenReady: again,
    };
    for (const need of view.needs ?? []) NEEDS[need]().catch(() => {}); // the view asks again, and reports an error
    const { render } = await view.load();
    if (signal.aborted) return;
    root.replaceChildren(stage);
    if (moved) scrollTo(0, 0);
    await render(stage, context);
    if (moved && !followed && !signal.aborted) scrollTo(0, before);
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    root.replaceChildren(failure(error));
    if (error.passing) whenReady(show, signal);
    if (!(error instanceof api.Problem)) console.error(error);
  }
  if (moved && !signal.aborted) {
    const heading = root.querySelector("h1") ?? root;
    heading.tabIndex = -1;
    heading.focus({ preventScroll: true });
  }
}

function found(path) {
  for (const view of VIEWS) {
    const parameters = match(view.path, path);
    if (parameters) return [view, parameters];
  }
  return [null, {}];
}

function title(text) {
  document.title = `${text} · lossd`;
}

function failure(error) {
  const above = VIEWS.find(({ path, nav }) => nav && shown.startsWith(`${path}/`)) ?? VIEWS[0];
  return h(
    "section",
    { class: "notice", role: "alert" },
    h("h1", {}, error.title ?? "This view failed"),
    h("p", {}, error.message),
    h(
      "p",
      { class: "row" },
      h("button", { type: "button", onclick: show }, "Try again"),
      h("a", { href: href(above.path) }, `All ${above.title.toLowerCase()}`),
      error.page && h("a", { href: error.page }, "What this error means"),
    ),
  );
}

function mark(path) {
  for (const link of document.querySelectorAll("#nav a")) {
    const at = link.hash.slice(1);
    if (path === at || path.startsWith(`${at}/`)) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function buildBar() {
  const links = VIEWS.filter((view) => view.nav).map((view) => h("a", { href: href(view.path) }, view.title));
  document.getElementById("nav").append(...links);
  const button = document.getElementById("theme");
  const label = () => {
    const [picture, text] = THEMES[theme.choice];
    button.replaceChildren(icon(picture));
    button.setAttribute("aria-label", text);
    button.title = text;
  };
  button.addEventListener("click", () => {
    announce(THEMES[theme.next()][1]);
    label();
  });
  label();
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the part after the # is the address of the view
    root.focus();
  });
}

/** Show the state of the service in the bar. */
function showState(state, text, detail) {
  const badge = document.getElementById("state");
  badge.dataset.state = state;
  badge.title = detail;
  document.getElementById("state-text").textContent = text;
}

api.onKeyNeeded(
  (reason) =>
    new Promise((resolve) => {
      const dialog = document.getElementById("key-dialog");
      const input = document.getElementById("key");
      document.getElementById("key-reason").textContent = reason;
      input.value = "";
      dialog.returnValue = "cancel";
      dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok" ? input.value.trim() : null), {
        once: true,
      });
      dialog.showModal();
    }),
);

buildBar();
history.scrollRestoration = "manual";
addEventListener(
  "scroll",
  () => {
    if (shown === current().path) scrolled.set(shown, scrollY);
  },
  { passive: true },
);
addEventListener(
  "click",
  (event) => {
    byLink = Boolean(event.target.closest?.("a[href^='#/']"));
  },
  { capture: true },
);
addEventListener("hashchange", show);
show();
watch(showState);
