// The theme of the API's documents: the one that was chosen in the explorer, else the system's.
const dark = matchMedia("(prefers-color-scheme: dark)");

function apply() {
  const chosen = localStorage.getItem("lossd-theme") ?? "system";
  const isDark = chosen === "system" ? dark.matches : chosen === "dark";
  document.documentElement.classList.toggle("dark-mode", isDark); // the class that Swagger UI's style sheet knows
}

dark.addEventListener("change", apply);
addEventListener("storage", apply); // chosen in another tab
apply();
