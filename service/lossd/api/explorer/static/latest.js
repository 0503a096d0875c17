/** Work that is asked for again while it is done: a slider moves faster than answers come. */

const STALE_AFTER_MS = 250;

/**
 * A function that runs `task(signal)`: never twice at once, and once more at the end for all calls in between. What takes
 * long is given up for what is asked now; its signal aborts. When the view is left, everything ends.
 */
export function latest(task, view) {
  let running = null;
  let again = false;

  async function run() {
    if (view.aborted) return;
    if (running) {
      again = true;
      running.giveUp ??= setTimeout(() => running?.controller.abort(), STALE_AFTER_MS);
      return;
    }
    running = { controller: new AbortController(), giveUp: null };
    try {
      await task(AbortSignal.any([view, running.controller.signal]));
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    } finally {
      clearTimeout(running.giveUp);
      running = null;
      if (again) {
        again = false;
        run();
      }
    }
  }
  return run;
}
