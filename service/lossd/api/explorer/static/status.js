/** The state of the service: polled, and checked at once after a failed request. */

import { onAbort } from "./signals.js";

const EVERY_MS = { ready: 2000, other: 1000 };
const PATIENCE_MS = 4000;

const changed = new EventTarget();
let isDoubted = false;
let wake = () => {};
let state = "unknown";

/** Call `again` when the service is ready again, or ready after a failed request, while the view is shown. */
export function whenReady(again, signal) {
  changed.addEventListener("ready", again, { signal });
}

/** Wait while the service starts. Requests sent now would occupy the browser's connections. */
export async function untilStarted(signal) {
  while (state === "waiting" && !signal?.aborted) {
    await new Promise((resolve) => {
      changed.addEventListener("change", resolve, { once: true });
      onAbort(signal, resolve);
    });
  }
}

/** Check the service now, after a request has failed for a reason that may pass. */
export function doubt() {
  isDoubted = true;
  wake();
}

/** Poll while the page is visible; `show(state, text, detail)` is called with each change. */
export async function watch(show) {
  let shownText = "";
  for (;;) {
    if (!document.hidden) {
      const wasDoubted = isDoubted;
      isDoubted = false;
      const found = await look();
      if (shownText !== found.text + found.detail) show(found.state, found.text, found.detail);
      shownText = found.text + found.detail;
      const again = found.state === "ready" && (state === "waiting" || state === "down" || wasDoubted);
      if (found.state !== "ready") isDoubted ||= wasDoubted;
      const news = state !== found.state;
      state = found.state;
      if (news) changed.dispatchEvent(new Event("change"));
      if (again) changed.dispatchEvent(new Event("ready"));
    }
    await pause(EVERY_MS[state] ?? EVERY_MS.other);
  }
}

async function look() {
  try {
    const response = await fetch("health/ready", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (response.ok) return { state: "ready", text: "Ready", detail: "" };
    const { detail = "" } = await response.json().catch(() => ({}));
    return { state: "waiting", text: detail.includes("starting") ? "Starting" : "Not ready", detail };
  } catch {
    return { state: "down", text: "Unreachable", detail: "The service does not answer." };
  }
}

/** Wait for a time, or until a request has failed; after a failure wait at least a second. */
function pause(duration) {
  return new Promise((resolve) => {
    const end = setTimeout(resolve, duration);
    const soon = isDoubted ? EVERY_MS.other : 0;
    setTimeout(() => {
      wake = () => {
        clearTimeout(end);
        resolve();
      };
    }, soon);
  });
}

for (const event of ["online", "offline"]) addEventListener(event, () => wake());
addEventListener("visibilitychange", () => wake());
