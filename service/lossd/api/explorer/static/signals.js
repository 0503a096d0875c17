/** Signals of views: aborted when the reader leaves, perhaps while the view is still loading. */

/** Call `act` when a signal aborts; now, if it has. */
export function onAbort(signal, act) {
  if (signal?.aborted) act();
  else signal?.addEventListener("abort", act, { once: true });
}
