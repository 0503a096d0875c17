/** The theme: light, dark, or the system's. */

import { onAbort } from "./signals.js";

const KEY = "lossd-theme";
const CHOICES = ["system", "light", "dark"];
const dark = matchMedia("(prefers-color-scheme: dark)");
const listeners = new Set();

export const theme = {
  /** The reader's choice: system, light or dark. */
  get choice() {
    return localStorage.getItem(KEY) ?? "system";
  },
  get isDark() {
    return this.choice === "system" ? dark.matches : this.choice === "dark";
  },
  /** Switch to the next of the three. */
  next() {
    const choice = CHOICES[(CHOICES.indexOf(this.choice) + 1) % CHOICES.length];
    localStorage.setItem(KEY, choice);
    apply();
    return choice;
  },
  /** A colour of the current style sheet, such as "accent" or "curve-1". */
  color(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  },
  /** Call `listener` when colours change, until the signal aborts. */
  onChange(listener, signal) {
    listeners.add(listener);
    onAbort(signal, () => listeners.delete(listener));
  },
};

/** Apply the choice. */
export function apply() {
  document.documentElement.dataset.theme = theme.isDark ? "dark" : "light";
  for (const listener of listeners) listener();
}

dark.addEventListener("change", apply);
apply();
