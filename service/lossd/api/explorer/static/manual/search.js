/** The search in the manual: sections that have every word of a query, those with the words in their headings first. */

const MOST = 12;
const AROUND = 90; // characters of an excerpt on each side of the first word

/**
 * The sections that fit best.
 * @param {[page: string, heading: string, address: string, text: string][]} index
 * @param {string} query
 */
export function search(index, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  return index
    .map((section) => ({ section, rank: rank(section, words) }))
    .filter(({ rank }) => rank > 0)
    .sort((a, b) => b.rank - a.rank)
    .slice(0, MOST)
    .map(({ section: [page, heading, address, text] }) => ({ page, heading, address, excerpt: excerpt(text, words) }));
}

/** How well a section fits: 0 if it lacks a word. */
function rank([page, heading, , text], words) {
  const [title, above, below] = [heading.toLowerCase(), page.toLowerCase(), text.toLowerCase()];
  let sum = 0;
  for (const word of words) {
    if (title === word) sum += 60;
    else if (title.startsWith(word)) sum += 25;
    else if (title.includes(word)) sum += 15;
    else if (above.includes(word)) sum += 8;
    else if (!below.includes(word)) return 0;
    sum += Math.min(5, below.split(word).length - 1);
  }
  return sum;
}

function excerpt(text, words) {
  const at = Math.max(0, text.toLowerCase().indexOf(words[0]));
  const begin = Math.max(0, at - AROUND);
  const end = Math.min(text.length, at + AROUND);
  return `${begin ? "…" : ""}${text.slice(begin, end)}${end < text.length ? "…" : ""}`;
}
