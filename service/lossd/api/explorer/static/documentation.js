/** A loss's docstring from the catalogue, as elements. */

import { h } from "./dom.js";

/** The sections of a docstring by heading, the first under "". The summary and formulas are left out. */
export function sections(text) {
  const parts = { "": [] };
  let heading = "";
  for (const line of text.split("\n").slice(1)) {
    const found = /^([A-Z][a-z]+):$/.exec(line);
    if (found) {
      heading = found[1];
      parts[heading] = [];
    } else parts[heading].push(line);
  }
  const joined = Object.entries(parts).map(([name, lines]) => [
    name,
    lines
      .join("\n")
      .replace(/\.\. math::.*(\n[ \t]+.*)*/g, "")
      .trim(),
  ]);
  return Object.fromEntries(joined);
}

/** Paragraphs, with text in backquotes as code. */
export function prose(text) {
  return text
    .split(/\n\s*\n/)
    .filter(Boolean)
    .map((paragraph) => h("p", {}, inline(paragraph.replace(/\s+/g, " "))));
}

/** One line, with text in backquotes as code. */
export function inline(text) {
  return text
    .split(/(``?[^`]+``?)/)
    .map((piece) => (piece.startsWith("`") ? h("code", {}, piece.replaceAll("`", "")) : piece));
}

const ADDRESSES = [
  [/\bdoi:(10\.\S+?)(?=[.,;]?(\s|$))/, (id) => `https://doi.org/${id}`],
  [/\barXiv:(\d{4}\.\d{4,5})/, (id) => `https://arxiv.org/abs/${id}`],
];

/** A reference, with a link if it has a DOI or an arXiv number. */
export function reference(text) {
  for (const [pattern, address] of ADDRESSES) {
    const found = pattern.exec(text);
    if (found) {
      return [
        text.slice(0, found.index),
        h("a", { href: address(found[1]), rel: "noreferrer" }, found[0]),
        text.slice(found.index + found[0].length),
      ];
    }
  }
  return [text];
}
