/** The state of the service from /metrics and /health/ready, updated every second while the page is visible. */

import { h, scrollRegion } from "../dom.js";
import { parse, quantile, since, total } from "../prometheus.js";
import { onAbort } from "../signals.js";
import { loadTest } from "./service/load.js";
import { ago, between, bytes, compact, count, seconds, whole } from "./service/numbers.js";
import { read, readiness } from "./service/readings.js";
import { fillBars, fillLosses, fillStages } from "./service/tables.js";
import { KEPT, tile } from "./service/tile.js";

const EVERY_MS = 1000;
const WINDOW = 15;

export async function render(root, context) {
  const { api, signal } = context;
  const readings = [];

  const headline = h("p", { class: "lead" });
  const state = h("span", { class: "state big" }, h("span", { class: "dot" }), h("span", {}));
  const tiles = [
    tile("Requests per second", "rate", (v) => compact(v)),
    tile("Median latency", "median", seconds, "p99"),
    tile("Requests per batch", "batch", (v) => compact(v)),
    tile("In progress", "queue", (v) => compact(v)),
    tile("Front-end CPU", "cpu", (v) => `${Math.round(100 * v)} %`),
    tile("Front-end memory", "memory", bytes),
  ];
  const stages = h("div", { class: "stages" });
  const sizes = h("div", { class: "bars" });
  const latency = h("div", { class: "bars" });
  const losses = scrollRegion("Requests by loss");

  root.append(
    h("header", { class: "title" }, h("div", { class: "row" }, h("h1", {}, "Service"), state), headline),
    loadTest(context),
    h(
      "section",
      { class: "meters", "aria-label": "Now" },
      tiles.map(({ element }) => element),
    ),
    h(
      "div",
      { class: "pair" },
      h("section", { class: "card" }, h("h2", {}, "Request time by stage"), stages),
      h("section", { class: "card" }, h("h2", {}, "Batch sizes"), sizes),
    ),
    h(
      "div",
      { class: "pair" },
      h("section", { class: "card" }, h("h2", {}, "Requests by latency"), latency),
      h("section", { class: "card" }, h("h2", {}, "By loss"), losses),
    ),
  );

  await tick();
  const timer = setInterval(() => document.hidden || tick().catch(stopped), EVERY_MS);
  onAbort(signal, () => clearInterval(timer));

  async function tick() {
    const [samples, ready] = await Promise.all([
      api
        .request("/metrics", { signal, cache: "no-store" })
        .then((response) => response.text())
        .then(parse),
      api
        .request("/health/ready", { signal, cache: "no-store" })
        .then((response) => response.json())
        .then(readiness, (error) => {
          if (error.status === 503) return error.message;
          throw error;
        }),
    ]);
    readings.push(read(samples));
    if (readings.length > KEPT) readings.shift();
    show(samples, ready);
  }

  function stopped(error) {
    if (error.name === "AbortError" || signal.aborted) return;
    state.dataset.state = "down";
    state.lastChild.textContent = error.status ? error.message : "Unreachable";
  }

  function show(samples, ready) {
    const now = readings.at(-1);
    const from = readings[Math.max(0, readings.length - 1 - WINDOW)];
    const recent = { total: since(from.total, now.total), sizes: since(from.sizes, now.sizes) };
    const quiet = !recent.total.some(({ count }) => count);
    const counted = quiet ? { total: now.total, sizes: now.sizes } : recent;
    state.dataset.state = ready.startsWith("Ready") ? "ready" : "waiting";
    state.lastChild.textContent = ready;
    const restarts = total(samples, "lossd_worker_restarts_total");
    headline.textContent = [
      `${whole(now.requests)} requests answered`,
      now.started && `in ${ago(Date.now() / 1000 - now.started)}`,
      `· ${whole(restarts)}\u00a0worker\u00a0${restarts === 1 ? "restart" : "restarts"}`,
    ]
      .filter(Boolean)
      .join(" ");

    const pairs = readings.slice(1).map((reading, i) => [readings[i], reading]);
    const over = (f) => pairs.map(([a, b]) => f(a, b));
    const elapsed = (a, b) => (b.at - a.at) / 1000;
    const series = {
      rate: over((a, b) => (b.requests - a.requests) / elapsed(a, b)),
      median: over((a, b) => quantile(since(a.total, b.total), 0.5)),
      batch: over((a, b) => {
        const n = count(since(a.sizes, b.sizes));
        return n ? (b.batched - a.batched) / n : null;
      }),
      queue: readings.map((reading) => reading.queue),
      cpu: over((a, b) => (b.cpu - a.cpu) / elapsed(a, b)),
      memory: readings.map((reading) => reading.memory),
    };
    for (const { name, update } of tiles) update(series[name], context.plots);
    tiles[1].note(quantile(counted.total, 0.99), quiet);
    tiles[3].aside(`${bytes(now.held)} held`);

    fillStages(stages, now, quiet ? null : from);
    fillBars(
      sizes,
      counted.sizes.map(({ upTo, count: n }, i, all) => ({ name: between(all[i - 1]?.upTo ?? 0, upTo), count: n })),
    );
    fillBars(
      latency,
      counted.total.map(({ upTo, count: n }) => ({
        name: Number.isFinite(upTo) ? `≤ ${seconds(upTo)}` : "longer",
        count: n,
      })),
    );
    fillLosses(losses, samples, context);
    for (const section of [stages, sizes, latency])
      section.dataset.since = quiet ? "since the start" : `in the last ${Math.round(elapsed(from, now))} s`;
  }
}
