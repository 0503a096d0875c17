/**
 * Plots. `curves` is uPlot on a canvas, for what is looked at closely; `thumbnail` is a small drawing. Both take their
 * colours from the style sheet and follow the theme. A canvas says nothing to a screen reader: whoever draws one puts a
 * table of the same numbers next to it.
 */

import { h, svg } from "./dom.js";
import { theme } from "./theme.js";

let library = null;

function uPlot() {
  library ??= new Promise((resolve, reject) => {
    const src = new URL("./vendor/uplot/uPlot.iife.min.js", import.meta.url);
    document.head.append(h("script", { src, onload: () => resolve(globalThis.uPlot), onerror: reject }));
  });
  return library;
}

/** A number, short: four digits, no more than it needs. */
export function short(value) {
  if (value === null || value === undefined) return "–";
  if (!Number.isFinite(value)) return String(value).replace("Infinity", "∞").replace("-", "−");
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  return text.replace("-", "−").replace("e+", "e");
}

/**
 * Curves over one axis x, in an element that has a width.
 *
 * @param options {height, xLabel, yLabel, link: plots with equal links share a cursor, onCursor(index or null), zero}
 * @returns {draw({x, series: [{values, color: a name in the style sheet, width, dash, points}]}), plot()}; it goes with `signal`.
 */
export async function curves(element, { height, xLabel, yLabel, link, onCursor, signal, tall }) {
  const Plot = await uPlot();
  let plot = null;
  let last = null;

  function draw({ x, series }) {
    last = { x, series };
    const data = [x, ...series.map((entry) => entry.values.map((value) => (Number.isFinite(value) ? value : null)))];
    const looks = JSON.stringify(series.map(({ values, ...look }) => look));
    if (plot && plot.looks === looks) plot.setData(data);
    else {
      plot?.destroy();
      plot = new Plot(options(series), data, element);
      plot.looks = looks;
    }
  }

  function options(series) {
    const font = `12px ${theme.color("font")}`;
    const axis = {
      stroke: () => theme.color("quiet"), font, labelFont: font, labelGap: 2, ticks: { show: false },
      grid: { stroke: () => theme.color("grid"), width: 1 },
      values: (_, splits) => splits.map(short),
    };
    return {
      width: element.clientWidth, height: height(), padding: [12, 12, 0, 0], legend: { show: false },
      scales: { x: { time: false }, y: { range: (_, low, high) => tall?.(low, high) ?? spread(low, high) } },
      axes: [
        { ...axis, label: xLabel(), labelSize: 22, size: 30, space: 60 },
        { ...axis, label: yLabel(), labelSize: 22, size: (_, values) => 14 + 7 * Math.max(3, ...(values ?? []).map((v) => v.length)), space: 36 },
      ],
      series: [{}, ...series.map((entry) => ({
        stroke: () => theme.color(entry.color), width: entry.width ?? 2, dash: entry.dash, alpha: entry.alpha ?? 1,
        points: { show: Boolean(entry.points), size: 5 },
        fill: entry.fill ? () => `color-mix(in srgb, ${theme.color(entry.color)} 9%, transparent)` : undefined,
      }))],
      cursor: {
        y: false, drag: { x: false, y: false }, sync: { key: link },
        points: { size: 8, width: 2, stroke: (u, i) => u.series[i].stroke(u, i), fill: () => theme.color("card") },
      },
      hooks: { setCursor: [(u) => onCursor?.(u.cursor.idx ?? null)], drawClear: [zeroLine] },
    };
  }

  const fit = new ResizeObserver(() => plot?.setSize({ width: element.clientWidth, height: height() }));
  fit.observe(element);
  theme.onChange(() => plot?.redraw(), signal);
  signal.addEventListener("abort", () => { fit.disconnect(); plot?.destroy(); });
  return { draw, redraw: () => { if (plot) { plot.destroy(); plot = null; draw(last); } } };
}

/** Some air above and below; a constant gets some too. */
function spread(low, high) {
  if (low === null) return [0, 1];
  const air = (high - low) * 0.06 || Math.max(Math.abs(high) * 0.5, 0.5);
  return [low >= 0 && low < air * 3 ? Math.min(0, low) : low - air, high + air];
}

/** The line of zero, a little stronger than the grid. */
function zeroLine(u) {
  const { ctx, bbox } = u;
  const y = Math.round(u.valToPos(0, "y", true)) + 0.5;
  if (!(y >= bbox.top && y <= bbox.top + bbox.height)) return;
  ctx.save();
  ctx.strokeStyle = theme.color("line-strong");
  ctx.globalAlpha = 0.55;
  ctx.lineWidth = 1;
  ctx.beginPath();
  ctx.moveTo(bbox.left, y);
  ctx.lineTo(bbox.left + bbox.width, y);
  ctx.stroke();
  ctx.restore();
}

/** A small drawing of a curve that fills its element; gaps where it is not finite. Decoration: say in words what it is. */
export function thumbnail(x, y, { low = null, high = null, air = 0.12 } = {}) {
  const finite = y.filter(Number.isFinite);
  const bottom = low ?? Math.min(...finite);
  const top = high ?? Math.max(...finite);
  const [from, to] = [x[0], x[x.length - 1]];
  const height = top - bottom || 1;
  const at = (i) => [
    ((x[i] - from) / (to - from || 1)) * 100,
    100 * (air + (1 - 2 * air) * (1 - (y[i] - bottom) / height)),
  ].map((v) => v.toFixed(2)).join(" ");
  let line = "";
  let pen = "M";
  for (const [i, value] of y.entries()) {
    if (Number.isFinite(value)) { line += pen + at(i); pen = "L"; } else pen = "M";
  }
  const whole = finite.length === y.length && y.length > 1;
  return svg("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" },
    whole && svg("path", { class: "area", d: `${line}L100 100L0 100Z` }), svg("path", { class: "line", d: line }));
}
