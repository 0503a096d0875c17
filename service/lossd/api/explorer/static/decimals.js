/** Numbers in the columns of a table: with equal digits, and lined up at the decimal point. */

import { figure } from "./plots.js";

const NUMBER = /^(< )?[+−]?[\d,]+(\.\d+)?$/;

/** Texts of values of one kind, with as many decimals as the one that needs most: a function of a value. */
export function evenly(values) {
  const texts = values.filter((value) => value !== null).map(figure);
  if (!texts.every((text) => NUMBER.test(text))) return figure;
  const decimals = Math.max(0, ...texts.map(decimalsOf));
  return (value) => (Number.isFinite(value) ? value.toFixed(decimals).replace("-", "−") : figure(value));
}

/**
 * The same table with its numbers lined up: a number with fewer decimals has the room of the others behind it, as
 * `data-room`. A cell may have several numbers, each in an element of the class `end`.
 */
export function aligned(table) {
  const columns = new Map();
  for (const row of table.querySelectorAll("tbody tr, tfoot tr"))
    for (const [i, cell] of [...row.cells].entries()) {
      if (!cell.classList.contains("number")) continue;
      const ends = [...cell.querySelectorAll(".end")];
      for (const [j, element] of (ends.length ? ends : [cell]).entries()) {
        const place = `${i}.${j}`;
        columns.set(place, [...(columns.get(place) ?? []), element]);
      }
    }
  for (const column of columns.values()) lineUp(column.filter((element) => NUMBER.test(element.textContent)));
  return table;
}

function lineUp(column) {
  const most = Math.max(0, ...column.map((element) => decimalsOf(element.textContent)));
  for (const element of column) {
    const decimals = decimalsOf(element.textContent);
    if (decimals < most) element.dataset.room = `${decimals ? "" : "."}${"0".repeat(most - decimals)}`;
  }
}

const decimalsOf = (text) => /\.(\d+)$/.exec(text)?.[1].length ?? 0;
