/** Addresses after the #: "#/losses/focal?gamma=2" is the view of "/losses/:name" with a parameter and a query. */

/** The current address: path and query. */
export function current() {
  const [path, query = ""] = location.hash.slice(1).split("?");
  return { path: path.replace(/\/+$/, "") || "/", query: new URLSearchParams(query) };
}

/** An address, for a link. */
export function href(path, query) {
  const text = new URLSearchParams(query).toString();
  return `#${path}${text && `?${text}`}`;
}

/** Go to an address; with `replace` it is no entry of the history. */
export function navigate(path, query, { replace = false } = {}) {
  if (replace) history.replaceState(null, "", href(path, query));
  else location.hash = href(path, query);
}

/** The parameters of a path that fits a pattern; null for another path. */
export function match(pattern, path) {
  const expected = pattern.split("/");
  const found = path.split("/");
  if (expected.length !== found.length) return null;
  const parameters = {};
  for (const [i, part] of expected.entries()) {
    if (part.startsWith(":")) parameters[part.slice(1)] = decodeURIComponent(found[i]);
    else if (part !== found[i]) return null;
  }
  return parameters;
}
