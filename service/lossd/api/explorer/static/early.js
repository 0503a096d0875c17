// Set the theme before the first paint, so that the page does not flash. theme.js sets it from then on.
const chosen = localStorage.getItem("lossd-theme") ?? "system";
const dark = chosen === "system" ? matchMedia("(prefers-color-scheme: dark)").matches : chosen === "dark";
document.documentElement.dataset.theme = dark ? "dark" : "light";
