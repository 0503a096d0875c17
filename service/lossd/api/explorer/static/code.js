/** A request as code: a command or a program, and the file that it needs. */

import { choice } from "./controls/choice.js";
import { copyButton, h, icon } from "./dom.js";
import { asFile } from "./evaluation.js";
import { FILE, LANGUAGES, snippets } from "./snippets.js";

const REVOKE_MS = 1000;

/** The code: `{ element, show(request, form, keyed) }`; `beside` are further elements beside the button to copy. */
export function codePanel(...beside) {
  const body = h("div", { class: "more" });
  const element = h("section", { class: "card more", "aria-label": "Code" });
  let language = "curl";
  let current = null; // the code in each language
  let request = null;
  return { element, show };

  function show(composed, form, keyed) {
    request = composed;
    current = snippets(request, { url: new URL(".", location.href.split("#")[0]).href, form, keyed });
    if (!element.children.length) element.append(heading(), body);
    fill();
  }

  function heading() {
    const set = (name) => {
      language = name;
      fill();
    };
    const languages = choice("language", Object.entries(LANGUAGES), language, set, null, "Language");
    return h("div", { class: "row spread" }, h("h2", {}, "Code"), languages.group);
  }

  function fill() {
    const { text, needsFile } = current[language];
    const region = { class: "request", tabindex: 0, role: "region" };
    const label = { "aria-label": `The request in ${LANGUAGES[language]}` };
    const note = (sentence) => h("span", { class: "small quiet" }, sentence);
    body.replaceChildren(
      h("pre", { ...region, ...label }, h("code", { id: "command" }, text)),
      h(
        "p",
        { class: "row" },
        copyButton(() => text),
        beside,
        needsFile && [saveButton(), note("The code reads the numbers from this file in its folder.")],
        !needsFile && language === "python" && note("Run pip install lossd first."),
      ),
    );
  }

  function saveButton() {
    const onclick = () => {
      const link = h("a", { href: URL.createObjectURL(asFile(request)), download: FILE });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), REVOKE_MS);
    };
    return h("button", { type: "button", class: "plain", onclick }, icon("save"), h("span", {}, `Save ${FILE}`));
  }
}
