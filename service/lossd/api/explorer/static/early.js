// Set the theme before the first paint, so that the page does not flash. theme.js sets it from then on.
const chosen = localStorage.getItem("lossd-theme") ?? "system";
const dark = chosen === "system" ? matchMedia("(prefers-color-scheme: dark)").matches : chosen === "dark";
document.documentElement.dataset.theme = dark ? "dark" : "light";

// Request the modules of the view at once with those of the shell; the page names the pack of each view.
const path = location.hash.slice(1).split("?")[0].replace(/\/+$/, "") || "/losses";
const packs = JSON.parse(document.querySelector("meta[name=packs]")?.content ?? "{}");
const [pack] = Object.keys(packs).filter((name) => new RegExp(`^${packs[name]}$`).test(path));
if (pack) {
  const href = new URL(pack, document.currentScript.src);
  document.head.append(Object.assign(document.createElement("link"), { rel: "modulepreload", href }));
}
