// Before anything is drawn, so that the page never flashes in the other theme; theme.js takes over from here.
const chosen = localStorage.getItem("lossd-theme") ?? "system";
const dark = chosen === "system" ? matchMedia("(prefers-color-scheme: dark)").matches : chosen === "dark";
document.documentElement.dataset.theme = dark ? "dark" : "light";
