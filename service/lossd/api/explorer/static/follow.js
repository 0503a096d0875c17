/** Documents that change: asked for again while they may change, and only sent if they have changed. */

const EVERY_MS = 2000;

/**
 * Show the document at a path now, and each time that it has changed.
 *
 * @param show Shows a document and returns whether it may change again.
 * @param context `{ api, signal, whenReady }` of the view.
 * @throws A Problem, if the first request fails.
 */
export async function follow(path, show, { api, signal, whenReady }) {
  let tag = null;
  let mayChange = true;

  async function look() {
    const found = await api.changed(path, tag, signal);
    if (found === null || signal.aborted) return;
    tag = found.tag;
    mayChange = await show(found.document);
  }

  async function again() {
    if (!mayChange || signal.aborted) return;
    try {
      if (!document.hidden) await look();
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof api.Problem)) throw error;
      if (!error.passing) return; // it was deleted, or the key is no longer valid: what is shown stays
    }
    later();
  }

  function later() {
    if (mayChange && !signal.aborted) setTimeout(again, EVERY_MS);
  }

  await look();
  later();
  whenReady(() => look().catch(() => {}));
}
