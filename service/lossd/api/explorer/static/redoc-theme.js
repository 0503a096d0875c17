// ReDoc's colours in the theme of the page. They cannot change later: for another theme the page is loaded again.
const light = {
  colors: {
    primary: { main: "#3a4fc4" },
    text: { primary: "#1b1d24", secondary: "#5a5e6b" },
    border: { dark: "#e3e0d8", light: "#ffffff" },
    error: { main: "#b3261e" },
  },
  schema: { nestedBackground: "#faf9f6" },
  typography: { code: { color: "#b3261e", backgroundColor: "#f2f0eb" } },
  sidebar: { backgroundColor: "#faf9f6", textColor: "#1b1d24", activeTextColor: "#3a4fc4" },
  rightPanel: { backgroundColor: "#1b1d24" },
};
const night = {
  colors: {
    primary: { main: "#9aabff" },
    success: { main: "#6fd6a2" },
    warning: { main: "#f2bd6b" },
    error: { main: "#ff9a90" },
    gray: { 50: "#1a1d25", 100: "#21252f" },
    text: { primary: "#e9eaf0", secondary: "#a3a8b8" },
    border: { dark: "#2b303c", light: "#2b303c" },
  },
  schema: { linesColor: "#767d90", nestedBackground: "#1a1d25" },
  typography: { code: { color: "#ffa45c", backgroundColor: "#21252f" }, links: { color: "#9aabff", hover: "#e9eaf0" } },
  sidebar: { backgroundColor: "#1a1d25", textColor: "#e9eaf0", activeTextColor: "#9aabff" },
  rightPanel: {
    backgroundColor: "#1a1d25",
    servers: { overlay: { backgroundColor: "#21252f", textColor: "#e9eaf0" }, url: { backgroundColor: "#13151b" } },
  },
  fab: { backgroundColor: "#21252f", color: "#9aabff" },
};
const isNight = document.documentElement.classList.contains("dark-mode");
const theme = isNight ? night : light;
// The right side is dark in both themes.
for (const [kind, color] of [
  ["success", "#6fd6a2"],
  ["error", "#ff9a90"],
  ["redirect", "#f2bd6b"],
  ["info", "#9aabff"],
]) {
  theme.colors.responses ??= {};
  theme.colors.responses[kind] = { tabTextColor: color };
}
document.querySelector("redoc").setAttribute("theme", JSON.stringify(theme));
new MutationObserver(() => location.reload()).observe(document.documentElement, { attributeFilter: ["class"] });
