/** Keys that move along a line of points. */

/**
 * Return the index that a key of a slider leads to, of 0 to `last`; null for any other key.
 *
 * @param {string} key - The event's key.
 * @param {?number} index - The present index; null for the middle.
 * @param {number} last - The last index.
 */
export function stepped(key, index, last) {
  const large = Math.ceil(last / 10);
  const moves = {
    ArrowRight: 1,
    ArrowUp: 1,
    ArrowLeft: -1,
    ArrowDown: -1,
    PageUp: large,
    PageDown: -large,
    Home: -last,
    End: last,
  };
  if (!(key in moves)) return null;
  return Math.min(last, Math.max(0, (index ?? Math.floor(last / 2)) + moves[key]));
}
