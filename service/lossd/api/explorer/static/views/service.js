/** The state of the service from /metrics and /health/ready, updated every second while the page is visible. */

import { h, icon } from "../dom.js";
import { buckets, parse, quantile, since, total } from "../prometheus.js";
import { tensor } from "../safetensors.js";

const EVERY_MS = 1000;
const KEPT = 60;
const WINDOW = 15;
const STAGES = {
  parse: "reading the request",
  queue: "waiting",
  copy: "to the device",
  compute: "computing",
  encode: "writing the answer",
};
const WORK = { requests: 600, atOnce: 6, rows: 64, classes: 10 };

export async function render(root, context) {
  const { api, signal } = context;
  const readings = [];

  const headline = h("p", { class: "lead" });
  const state = h("span", { class: "state big" }, h("span", { class: "dot" }), h("span", {}));
  const tiles = [
    tile("Requests a second", "rate", (v) => compact(v)),
    tile("Median latency", "median", seconds, "p99"),
    tile("Requests in a batch", "batch", (v) => compact(v)),
    tile("In progress", "queue", (v) => compact(v)),
    tile("CPU of the front", "cpu", (v) => `${Math.round(100 * v)} %`),
    tile("Memory of the front", "memory", bytes),
  ];
  const stages = h("div", { class: "stages" });
  const sizes = h("div", { class: "bars" });
  const latency = h("div", { class: "bars" });
  const losses = h("div", { class: "scroll" });
  const progress = h("progress", { max: WORK.requests, value: 0, "aria-label": "Requests answered", hidden: true });
  const said = h("span", { class: "small quiet number", role: "status" });
  const start = h("button", { type: "button", onclick: work }, icon("play"), "Run a load test");

  root.append(
    h("header", { class: "title" }, h("div", { class: "row" }, h("h1", {}, "Service"), state), headline),
    h("div", { class: "row" }, start, progress, said),
    h(
      "section",
      { class: "meters", "aria-label": "Now" },
      tiles.map(({ element }) => element),
    ),
    h(
      "div",
      { class: "pair" },
      h("section", { class: "card" }, h("h2", {}, "Time of a request by stage"), stages),
      h("section", { class: "card" }, h("h2", {}, "Batches by number of requests"), sizes),
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
  signal.addEventListener("abort", () => clearInterval(timer));

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
      `· ${whole(restarts)} worker ${restarts === 1 ? "restart" : "restarts"}`,
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
      section.dataset.since = quiet ? "since it started" : `in the last ${Math.round(elapsed(from, now))} s`;
  }

  async function work() {
    start.disabled = true;
    progress.hidden = false;
    progress.value = 0;
    said.textContent = "";
    const begin = performance.now();
    let [sent, failed] = [0, 0];
    const one = async () => {
      while (sent < WORK.requests && !signal.aborted) {
        sent += 1;
        try {
          await api.evaluateTensors(sample(), signal);
        } catch (error) {
          if (error.name === "AbortError") return;
          failed += 1;
        }
        progress.value += 1;
      }
    };
    await Promise.all(Array.from({ length: WORK.atOnce }, one));
    const took = (performance.now() - begin) / 1000;
    said.textContent = `${WORK.requests} focal losses of ${WORK.rows} × ${WORK.classes}, with gradients, in ${took.toFixed(1)} s over this browser's ${WORK.atOnce} connections${failed ? `; ${failed} failed` : ""}`;
    progress.hidden = true;
    start.disabled = false;
  }
}

/** The text of the state: ready, and the number of compiled passes while passes are compiled. */
function readiness({ compiled: { ready, failed, total } }) {
  return ready + failed < total ? `Ready, compiling: ${ready} of ${total} passes done` : "Ready";
}

/** A request of the size of a small training step: random scores and classes. */
function sample() {
  const { rows, classes } = WORK;
  const scores = Float32Array.from({ length: rows * classes }, () => 4 * Math.random() - 2);
  const target = Array.from({ length: rows }, () => Math.floor(Math.random() * classes));
  return {
    loss: { name: "focal", gamma: 2 },
    outputs: ["loss", "gradient"],
    inputs: {
      prediction: { dtype: "F32", shape: [rows, classes], data: scores },
      target: tensor(target, [rows], "I64"),
    },
  };
}

function read(samples) {
  const stage = (name) => total(samples, "lossd_request_seconds_sum", { stage: name });
  return {
    at: performance.now(),
    requests: total(samples, "lossd_requests_total"),
    total: buckets(samples, "lossd_request_seconds", { stage: "total" }),
    sizes: buckets(samples, "lossd_batch_requests"),
    batched: total(samples, "lossd_batch_requests_sum"),
    queue: total(samples, "lossd_queue_requests"),
    held: total(samples, "lossd_queue_bytes"),
    cpu: total(samples, "process_cpu_seconds_total"),
    memory: total(samples, "process_resident_memory_bytes"),
    started: total(samples, "process_start_time_seconds"),
    answered: total(samples, "lossd_request_seconds_count", { stage: "total" }),
    stages: Object.fromEntries(Object.keys(STAGES).map((name) => [name, stage(name)])),
  };
}

// Drawing

function tile(label, name, format, noted) {
  const value = h("strong", { class: "number" }, "–");
  const more = h("span", { class: "small quiet number" });
  const spark = h("div", { class: "spark" });
  return {
    name,
    element: h("article", { class: "card meter" }, h("h2", {}, label), h("p", {}, value, " ", more), spark),
    update(values, plots) {
      const known = values.filter((v) => v !== null);
      value.textContent = known.length ? format(values.at(-1) ?? known.at(-1)) : "–";
      const padded = [...Array(Math.max(0, KEPT - values.length)).fill(NaN), ...values.map((v) => v ?? NaN)];
      if (known.length > 1)
        spark.replaceChildren(
          plots.thumbnail(
            padded.map((_, i) => i),
            padded,
            { low: 0, high: 1.15 * Math.max(...known, 1e-9), air: 0.04 },
          ),
        );
    },
    note(v, quiet) {
      more.textContent = v === null ? "" : `${noted} ${format(v)}${quiet ? ", so far" : ""}`;
    },
    aside(text) {
      more.textContent = text;
    },
  };
}

function fillStages(element, now, recent) {
  const answered = now.answered - (recent?.answered ?? 0);
  const mean = Object.fromEntries(
    Object.keys(STAGES).map((name) => [
      name,
      answered ? (now.stages[name] - (recent?.stages[name] ?? 0)) / answered : 0,
    ]),
  );
  const whole = Object.values(mean).reduce((sum, v) => sum + v, 0);
  if (!whole) return element.replaceChildren(h("p", { class: "quiet" }, "Nothing has been asked yet."));
  const color = (i) => ({
    "--color": `var(--curve-${i + 1})`,
    "--part": `${Math.max(0.4, (100 * Object.values(mean)[i]) / whole)}`,
  });
  const names = Object.keys(STAGES);
  return element.replaceChildren(
    h(
      "div",
      { class: "stack", "aria-hidden": "true" },
      names.map((_, i) => h("span", { style: color(i) })),
    ),
    h(
      "table",
      { class: "plain" },
      h(
        "tbody",
        {},
        names.map((name, i) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, h("span", { class: "swatch square", style: color(i) }), STAGES[name]),
            h("td", { class: "number" }, seconds(mean[name])),
            h("td", { class: "number quiet" }, `${Math.round((100 * mean[name]) / whole)} %`),
          ),
        ),
      ),
    ),
  );
}

function fillBars(element, entries) {
  const used = entries.filter(({ count: n }) => n);
  if (!used.length) return element.replaceChildren(h("p", { class: "quiet" }, "Nothing has been asked yet."));
  const shown = entries.slice(entries.indexOf(used[0]), entries.indexOf(used.at(-1)) + 1);
  const most = Math.max(...shown.map(({ count: n }) => n));
  return element.replaceChildren(
    h(
      "table",
      { class: "plain" },
      h(
        "tbody",
        {},
        shown.map(({ name, count: n }) =>
          h(
            "tr",
            {},
            h("th", { scope: "row", class: "number" }, name),
            h(
              "td",
              { class: "bar-cell", "aria-hidden": "true" },
              h("span", { style: { "--part": `${(100 * n) / most}%` } }),
            ),
            h("td", { class: "number" }, whole(n)),
          ),
        ),
      ),
    ),
  );
}

function fillLosses(element, samples, { href }) {
  const of = new Map();
  for (const { labels, value } of samples.get("lossd_requests_total") ?? []) {
    const row = of.get(labels.loss) ?? { ok: 0, refused: 0 };
    if (labels.outcome === "ok") row.ok += value;
    else row.refused += value;
    of.set(labels.loss, row);
  }
  const rows = [...of].sort(([, a], [, b]) => b.ok + b.refused - a.ok - a.refused).slice(0, 10);
  if (!rows.length) return element.replaceChildren(h("p", { class: "quiet" }, "Nothing has been asked yet."));
  return element.replaceChildren(
    h(
      "table",
      { class: "plain" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, "Loss"),
          h("th", { scope: "col", class: "number" }, "answered"),
          h("th", { scope: "col", class: "number" }, "refused"),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map(([loss, { ok, refused }]) =>
          h(
            "tr",
            {},
            h(
              "th",
              { scope: "row" },
              loss ? h("a", { class: "mono", href: href(`/losses/${loss}`) }, loss) : "unreadable",
            ),
            h("td", { class: "number" }, whole(ok)),
            h("td", { class: "number" }, whole(refused)),
          ),
        ),
      ),
    ),
  );
}

// Numbers in words

const count = (counted) => counted.reduce((sum, bucket) => sum + bucket.count, 0);
const whole = (value) => Math.round(value).toLocaleString("en");
const compact = (value) =>
  value >= 100 ? whole(value) : Number(value.toFixed(value >= 10 ? 1 : 2)).toLocaleString("en");

function between(above, upTo) {
  if (!Number.isFinite(upTo)) return `over ${above}`;
  return upTo - above > 1 ? `${above + 1}–${upTo}` : String(upTo);
}

function seconds(value) {
  if (value >= 1) return `${Number(value.toPrecision(3))} s`;
  if (value >= 1e-3) return `${Number((1e3 * value).toPrecision(3))} ms`;
  return `${Math.round(1e6 * value)} µs`;
}

function bytes(value) {
  const step = value > 0 ? Math.min(3, Math.floor(Math.log2(value) / 10)) : 0;
  return `${Number((value / 1024 ** step).toPrecision(3))} ${["B", "KiB", "MiB", "GiB"][step]}`;
}

function ago(s) {
  if (s < 120) return `${Math.round(s)} seconds`;
  if (s < 7200) return `${Math.round(s / 60)} minutes`;
  return s < 172800 ? `${Math.round(s / 3600)} hours` : `${Math.round(s / 86400)} days`;
}
