/** Tasks that are requested again while they run: a slider moves faster than answers arrive. */

const STALE_AFTER_MS = 250;

/**
 * A function that runs `task(signal)`. One run at a time; all calls during a run become one run after it. A newer call
 * aborts a run that takes long. Leaving the view aborts all.
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
