/** Saving the pictures that the service draws. */

import { h, icon } from "./dom.js";

/**
 * A button that saves the service's own picture of what a view shows.
 *
 * `picture()` returns its path and the name of the file, `[path, name]`, when the button is pressed.
 */
export function saveButton(picture, { api, signal }) {
  const button = h("button", { type: "button", class: "plain", onclick: save }, icon("save"), "Save as SVG");
  const failure = h("p", { class: "small bad", role: "alert", hidden: true });

  async function save() {
    const [path, name] = picture();
    button.disabled = true;
    failure.hidden = true;
    try {
      const answer = await api.request(path, { signal });
      const link = h("a", { href: URL.createObjectURL(await answer.blob()), download: name });
      link.click();
      URL.revokeObjectURL(link.href);
    } catch (error) {
      if (!(error instanceof api.Problem)) throw error;
      failure.textContent = error.message;
      failure.hidden = false;
    }
    button.disabled = false;
  }

  return h("div", { class: "row tight save" }, failure, button);
}
