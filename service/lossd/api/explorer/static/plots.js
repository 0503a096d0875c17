/**
 * Plots. `curves` is uPlot on a canvas; `thumbnail` is a small SVG. Both take their colours from the style sheet and
 * follow the theme. Screen readers cannot read a canvas: put a table of the same numbers beside it.
 */

import { h, stylesheet, svg } from "./dom.js";
import { onAbort } from "./signals.js";
import { theme } from "./theme.js";

let library = null;

/** uPlot, loaded once. */
export function uPlot() {
  library ??= loaded();
  return library;
}

async function loaded() {
  const at = (name) => new URL(`./vendor/uplot/${name}`, import.meta.url);
  const script = new Promise((resolve, reject) => {
    document.head.append(h("script", { src: at("uPlot.iife.min.js"), onload: resolve, onerror: reject }));
  });
  await Promise.all([script, stylesheet(at("uPlot.min.css"))]);
  return globalThis.uPlot;
}

/** A number in at most four digits. */
export function short(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "object") return Object.values(value).map(short).join(" at "); // a value and its threshold
  if (!Number.isFinite(value)) return String(value).replace("Infinity", "∞").replace("-", "−");
  const size = Math.abs(value);
  const text =
    size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  return text.replaceAll("-", "−").replace("e+", "e");
}

/** A number in at most six digits, as the command line prints it. */
export function figure(value) {
  if (value === null || value === undefined) return "–";
  if (!Number.isFinite(value)) return short(value);
  const size = Math.abs(value);
  const digits = Number(value.toPrecision(6));
  const text = size !== 0 && (size < 1e-4 || size >= 1e6) ? digits.toExponential() : String(digits);
  return text.replaceAll("-", "−").replace("e+", "e");
}

/**
 * Curves over one axis x, in an element that has a width.
 *
 * @param options `{height(), xLabel(), yLabel(), link, onCursor, signal}`: plots of one `link` share a cursor, and
 *   `onCursor(index, left)` has the point under it and where that is, in pixels, or null; `log` makes y logarithmic.
 * @returns `draw({x, series: [{values, color: a name in the style sheet, width, dash, fill}]})` and more, see below.
 */
export async function curves(element, { height, xLabel, yLabel, link, onCursor, signal, log = false }) {
  const Plot = await uPlot();
  const name = h("p", { class: "axis-name", "aria-hidden": "true" }); // a canvas would cut a long one
  let plot = null;

  function draw({ x, series }) {
    const data = [
      x,
      ...series.map((entry) =>
        entry.values.map((value) => (Number.isFinite(value) && (!log || value > 0) ? value : null)),
      ),
    ];
    const looks = JSON.stringify(series.map(({ values, ...look }) => look));
    if (plot && plot.looks === looks) plot.setData(data);
    else {
      plot?.destroy();
      plot = new Plot(options(series), data, element);
      plot.looks = looks;
    }
    name.textContent = xLabel();
    element.append(name);
  }

  function options(series) {
    const font = `12px ${theme.color("font")}`;
    const axis = {
      stroke: () => theme.color("quiet"),
      font,
      labelFont: font,
      labelGap: 2,
      ticks: { show: false },
      grid: { stroke: () => theme.color("grid"), width: 1 },
      values: (_, splits) => splits.map((value) => (value === null ? "" : short(value))),
    };
    return {
      width: element.clientWidth,
      height: height(),
      padding: [12, 14, 0, 0],
      legend: { show: false },
      pxAlign: false,
      scales: {
        x: { time: false },
        y: log
          ? { distr: 3, range: (_, low, high) => (low === null ? [0.1, 1] : Plot.rangeLog(low, high, 10, false)) }
          : { range: (_, low, high) => spread(low, high) },
      },
      axes: [
        { ...axis, size: 30, space: 60 },
        { ...axis, label: yLabel(), labelSize: 20, size: 46, space: 36 },
      ],
      series: [
        {},
        ...series.map((entry) => ({
          stroke: () => theme.color(entry.color),
          width: entry.width ?? 2,
          dash: entry.dash,
          points: { show: entry.points ?? false },
          spanGaps: entry.spanGaps,
          fill: entry.fill ? () => `color-mix(in srgb, ${theme.color(entry.color)} 9%, transparent)` : undefined,
        })),
      ],
      cursor: {
        y: false,
        drag: { x: false, y: false },
        sync: { key: link },
        points: { size: 8, width: 2, stroke: (u, i) => u.series[i].stroke(u, i), fill: () => theme.color("card") },
      },
      hooks: {
        setCursor: [(u) => onCursor?.(u.cursor.idx ?? null, u.cursor.left + u.bbox.left / devicePixelRatio)],
        drawClear: log ? [] : [zeroLine],
      },
    };
  }

  const fit = new ResizeObserver(() => plot?.setSize({ width: element.clientWidth, height: height() }));
  fit.observe(element);
  theme.onChange(() => plot?.redraw(), signal);
  onAbort(signal, () => {
    fit.disconnect();
    plot?.destroy();
  });
  return {
    draw,
    /** Forget the range of the axis, before another axis is drawn. */
    forget: () => {
      plot?.destroy();
      plot = null;
    },
    /** Put the cursor on the point with an index. */
    point: (index) => plot?.setCursor({ left: plot.valToPos(plot.data[0][index], "x"), top: 0 }),
  };
}

const FLAT = 1e-6;

/** The range of the values with a margin, for a constant too. */
function spread(low, high) {
  if (low === null) return [0, 1];
  const span = high - low;
  const flat = span < FLAT * Math.max(Math.abs(low), Math.abs(high)); // else no tick differs from the next
  const air = (flat ? 0 : span * 0.06) || Math.max(Math.abs(high) * 0.5, 0.5);
  return [low >= 0 && low < air * 3 ? Math.min(0, low) : low - air, high + air];
}

/** Draw the line of zero, stronger than the grid. */
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

/** A piece of a curve, with its colour and its dashes. */
export const swatch = ({ color, dash }) =>
  svg(
    "svg",
    { class: "stroke", viewBox: "0 0 26 4", "aria-hidden": "true", style: { "--color": `var(--${color})` } },
    svg("path", { d: "M0 2h26", "stroke-dasharray": dash?.join(" ") }),
  );

/** A small drawing of a curve that fills its element, with gaps at values that are not finite. Decoration only. */
export function thumbnail(x, y, { low = null, high = null, air = 0.12 } = {}) {
  const finite = y.filter(Number.isFinite);
  const bottom = low ?? Math.min(...finite);
  const top = high ?? Math.max(...finite);
  const [from, to] = [x[0], x[x.length - 1]];
  const height = top - bottom || 1;
  const at = (i) =>
    [((x[i] - from) / (to - from || 1)) * 100, 100 * (air + (1 - 2 * air) * (1 - (y[i] - bottom) / height))]
      .map((v) => v.toFixed(2))
      .join(" ");
  let line = "";
  let pen = "M";
  for (const [i, value] of y.entries()) {
    if (Number.isFinite(value)) {
      line += pen + at(i);
      pen = "L";
    } else pen = "M";
  }
  const whole = finite.length === y.length && y.length > 1;
  return svg(
    "svg",
    { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" },
    whole && svg("path", { class: "area", d: `${line}L100 100L0 100Z` }),
    svg("path", { class: "line", d: line }),
  );
}
