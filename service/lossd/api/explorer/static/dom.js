/** Elements from functions instead of markup, so that text never becomes markup. */

/**
 * An element: h("p", { class: "quiet", onclick: f }, "text", child). Attributes that are null or false are left out;
 * those starting with "on" are listeners; `dataset` and `style` (with custom properties) take objects.
 */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** A text that may be broken behind each `sign`. */
export const breakable = (text, sign) =>
  text.split(sign).flatMap((part, i, { length }) => (i < length - 1 ? [part + sign, h("wbr", {})] : [part]));

/** A labelled region that scrolls, by keyboard too: for what may be wider than the page. */
export function scrollRegion(label, ...children) {
  return faded(h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, ...children));
}

/** A region that scrolls, with the sides in `data-more` where more is hidden, which the style sheet fades out. */
export function faded(region) {
  const update = () => {
    const behind = region.scrollWidth - region.clientWidth - region.scrollLeft;
    region.dataset.more = [region.scrollLeft > 1 && "left", behind > 1 && "right"].filter(Boolean).join(" ");
  };
  region.addEventListener("scroll", update, { passive: true });
  new ResizeObserver(update).observe(region);
  const updateWithFonts = () => {
    update();
    document.fonts.ready.then(update); // those of a formula are loaded when it is there, and change its width
  };
  new MutationObserver(updateWithFonts).observe(region, { childList: true, subtree: true });
  return region;
}

/** The list of an answer's warnings, each `{ code, detail }`; null without any. */
export function warningList(found) {
  if (!found?.length) return null;
  return h(
    "ul",
    { class: "warnings", "aria-label": "Warnings" },
    found.map(({ code, detail }) => h("li", {}, h("strong", {}, `${code.replaceAll("_", " ")}:`), " ", detail)),
  );
}

/** An element in the SVG namespace. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

/**
 * Make the children of an element equal to new ones. Elements that fit are changed in place, so that the focus, scroll
 * positions and open folds stay: those with the same `data-key`, and those without one at the same place. Listeners of
 * the old elements stay too: they must not depend on the data. A child that the element has already is only moved.
 */
export function patch(element, ...children) {
  const nodes = present(children).map((child) => (child instanceof Node ? child : new Text(child)));
  const keyed = new Map([...element.children].map((child) => [child.dataset.key, child]));
  const fit = (next) => (next.parentNode === element ? next : next.dataset?.key && keyed.get(next.dataset.key)) || null;
  const fitting = nodes.map(fit);
  const kept = new Set(fitting);
  for (const child of [...element.childNodes]) if (child.dataset?.key && !kept.has(child)) child.remove();
  for (const [i, next] of nodes.entries()) {
    const now = element.childNodes[i] ?? null;
    const old = fitting[i] ?? (kept.has(now) || now?.nodeName !== next.nodeName ? null : now);
    if (!old) element.insertBefore(next, now);
    else {
      if (old !== now) element.insertBefore(old, now);
      if (old !== next) change(old, next);
    }
  }
  while (element.childNodes.length > nodes.length) element.lastChild.remove();
}

function change(old, next) {
  if (next instanceof Text) old.data = next.data;
  else {
    copyAttributes(next, old);
    patch(old, ...next.childNodes);
  }
}

const OWN = new Set(["open", "style", "data-more"]); // the reader opens folds, and scrollRegion sets data-more

function copyAttributes(from, to) {
  for (const { name } of [...to.attributes]) if (!OWN.has(name) && !from.hasAttribute(name)) to.removeAttribute(name);
  for (const { name, value } of from.attributes)
    if (!OWN.has(name) && to.getAttribute(name) !== value) to.setAttribute(name, value);
  if (to.style.cssText !== from.style.cssText) to.style.cssText = from.style.cssText;
}

const present = (children) =>
  children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "style") for (const [key, entry] of Object.entries(value)) element.style.setProperty(key, entry);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...present(children));
  return element;
}

/** An icon by name. Icons are decoration: put text beside each. */
export function icon(name) {
  const paths = ICONS[name].map((d) => svg("path", { d }));
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, paths);
}

const ICONS = {
  search: ["M11 4a7 7 0 1 0 0 14a7 7 0 0 0 0-14", "m20 20-4-4"],
  sun: [
    "M12 8a4 4 0 1 0 0 8a4 4 0 0 0 0-8",
    "M12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M5.3 18.7l1.4-1.4M17.3 6.7l1.4-1.4",
  ],
  moon: ["M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5"],
  contrast: ["M12 3.5a8.5 8.5 0 1 0 0 17a8.5 8.5 0 0 0 0-17", "M12 3.5v17M12 8h5.5M12 12h8M12 16h5.5"],
  plus: ["M12 5v14M5 12h14"],
  close: ["m6 6 12 12M18 6 6 18"],
  back: ["m14 6-6 6 6 6"],
  key: ["M8 12a4 4 0 1 0 0 8a4 4 0 0 0 0-8", "m11 13 8-8m-3 3 3 3m-5-1 2 2"],
  reset: ["M4 12a8 8 0 1 0 2.5-5.8", "M4 4.5v4.5h4.5"],
  copy: ["M9 9h10v11H9z", "M15 9V4H5v11h4"],
  save: ["M12 4v11m-4-4 4 4 4-4", "M5 19h14"],
  play: ["M7 5v14l12-7z"],
  open: ["M12 15V4m-4 4 4-4 4 4", "M5 14v5h14v-5"],
  external: ["M14 5h5v5", "m19 5-8 8", "M11 6H5v13h13v-6"],
};

/** Announce a sentence to screen readers. */
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

/** A button that copies the text that `text` returns. */
export function copyButton(text) {
  const label = h("span", {}, "Copy");
  const onclick = async () => {
    await navigator.clipboard.writeText(text());
    label.textContent = "Copied";
    announce("Copied");
  };
  return h("button", { type: "button", class: "plain", onclick }, icon("copy"), label);
}

/** Load a style sheet. */
export function stylesheet(href) {
  return new Promise((resolve, reject) => {
    document.head.append(h("link", { rel: "stylesheet", href, onload: resolve, onerror: reject }));
  });
}
