/** Files that the reader chooses or drops: read in the page, and assigned to inputs. */

import { h, icon } from "../../dom.js";
import { ENDINGS, read, role, Unreadable } from "../../files.js";

/** The drop zone: `{ element, problem, listeners }`; the listeners are for the element that takes drops. */
export function fileZone(state, request, arrays, { signal, announce, changed }) {
  const files = h("input", {
    type: "file",
    multiple: true,
    class: "unseen",
    id: "files",
    accept: ENDINGS.join(","),
    onchange: () => take(files.files),
  });
  const element = h(
    "label",
    { class: "drop", for: "files" },
    files,
    icon("open"),
    h("span", {}, h("strong", {}, "Choose files"), " or drop them here"),
    h("span", { class: "small quiet" }, ".npy, .npz, .safetensors or .csv, read in this page"),
  );
  const problem = h("p", { class: "small bad", role: "alert" });
  const leave = () => {
    delete element.dataset.over;
  };
  const listeners = {
    ondragover(event) {
      event.preventDefault();
      element.dataset.over = "";
    },
    ondragleave: leave,
    ondrop(event) {
      event.preventDefault();
      leave();
      take(event.dataTransfer.files);
    },
  };
  return { element, problem, listeners };

  async function take(list) {
    problem.textContent = "";
    const found = [];
    for (const file of [...list]) {
      try {
        found.push(...(await read(file)).map((entry) => ({ ...entry, label: labelOf(file, entry) })));
      } catch (error) {
        if (!(error instanceof Unreadable)) throw error;
        problem.textContent = `${file.name}: ${error.message}`;
      }
    }
    files.value = "";
    if (!found.length || signal.aborted) return;
    if (state.pristine) state.texts = {};
    state.pristine = false;
    arrays.push(...found);
    assign(arrays.length - found.length);
    announce(`${found.length} ${found.length === 1 ? "array" : "arrays"} read`);
    changed();
  }

  /**
   * Assign new arrays to inputs: by their names, then in order to the inputs without data. A new array for each input
   * replaces what they all had. Others are left for the reader to choose, who is told so.
   */
  function assign(first) {
    const fresh = arrays.map((_, i) => i).slice(first);
    const names = request.names();
    for (const i of fresh) {
      const { name, role: known } = arrays[i];
      const input = known ?? (request.declared(name) ? name : role(name));
      if (!names.includes(input) && !request.declared(input)) continue;
      state.files[input] = i;
      state.texts[input] ??= "";
    }
    const rest = fresh.filter((i) => !Object.values(state.files).includes(i));
    const empty = names.filter((name) => !(name in state.files) && !state.texts[name]);
    for (const name of rest.length === names.length ? names : empty) if (rest.length) state.files[name] = rest.shift();
    if (rest.length) {
      const labels = rest.map((i) => arrays[i].label).join(", ");
      problem.textContent += ` No input has the name of ${labels}: choose it as the source of one.`;
    }
  }
}

const labelOf = (file, { name }) => (file.name.startsWith(`${name}.`) ? file.name : `${file.name}: ${name}`);
