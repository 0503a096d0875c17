/** Whether the service takes work: asked now and then, and at once where a request has failed. */

const EVERY_MS = { ready: 2000, other: 1000 };
const PATIENCE_MS = 4000;

const changed = new EventTarget();
let doubted = false;
let wake = () => {};
let state = "unknown";

/** Call `again` whenever the service takes work after it did not, or after a request has failed, while the view is shown. */
export function whenReady(again, signal) {
  changed.addEventListener("ready", again, { signal });
}

/** While the service is known to start, wait: what it would hold keeps connections that others need. */
export async function untilStarted(signal) {
  while (state === "waiting" && !signal?.aborted) {
    await new Promise((resolve) => {
      changed.addEventListener("change", resolve, { once: true });
      signal?.addEventListener("abort", resolve, { once: true });
    });
  }
}

/** A request has failed for a reason that may pass: look now. */
export function doubt() {
  doubted = true;
  wake();
}

/** Ask for as long as somebody looks; `show(state, text, detail)` is called with what is new. */
export async function watch(show) {
  let said = "";
  for (;;) {
    if (!document.hidden) {
      const wasDoubted = doubted;
      doubted = false;
      const found = await look();
      if (said !== found.text + found.detail) show(found.state, found.text, found.detail);
      said = found.text + found.detail;
      const again = found.state === "ready" && (state === "waiting" || state === "down" || wasDoubted);
      if (found.state !== "ready") doubted ||= wasDoubted;
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

/** Until the time is over, or something is in doubt; even then not without a rest. */
function pause(duration) {
  return new Promise((resolve) => {
    const end = setTimeout(resolve, duration);
    const soon = doubted ? EVERY_MS.other : 0;
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
