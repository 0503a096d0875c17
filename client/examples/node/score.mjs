// The score of a data set that is sent in batches, from JavaScript: start it again after a crash, and it goes on.
//
//     node client/examples/node/score.mjs [http://127.0.0.1:8000]
//
// Needs Node 20.11 or newer. A service that asks for a key gets the one in LOSSD_API_KEY.

import { encode } from "./evaluate.mjs";

const url = process.argv[2] ?? "http://127.0.0.1:8000";
const MEDIA_TYPE = "application/vnd.safetensors";

async function ask(method, path, body, type = "application/json") {
  const headers = body === undefined ? {} : { "Content-Type": type };
  if (process.env.LOSSD_API_KEY) headers.Authorization = `Bearer ${process.env.LOSSD_API_KEY}`;
  const response = await fetch(`${url}/v1/runs/${path}`, { method, headers, body });
  if (response.ok || (method === "HEAD" && response.status === 404)) return response;
  const problem = await response.json();
  throw new Error(`${problem.title}: ${problem.detail} (request ${problem.request_id})`);
}

// #region score
/**
 * Score a data set in a run, and seal it.
 *
 * @param {string} run The run's name.
 * @param {object} definition What is computed, and how many rows the data set has.
 * @param {Iterable<{name: string, first: number, inputs: object}>} batches Their names, first rows and typed arrays.
 * @returns The sealed run: its result has the metrics of all rows.
 */
export async function score(run, definition, batches) {
  await ask("PUT", run, JSON.stringify(definition)); // the same definition again opens the run
  for (const { name, first, inputs } of batches) {
    if ((await ask("HEAD", `${run}/batches/${name}`)).ok) continue; // counted before
    const body = new Blob(encode(inputs, { request: JSON.stringify({ first }) }));
    await ask("PUT", `${run}/batches/${name}`, body, MEDIA_TYPE);
  }
  return (await ask("POST", `${run}/seal`, "{}")).json();
}
// #endregion

/** A data set of 1000 rows in batches of 100: logits that are right for three rows of four. */
function* batches() {
  for (let first = 0; first < 1000; first += 100) {
    const rows = Array.from({ length: 100 }, (_, i) => first + i);
    const target = BigInt64Array.from(rows, (row) => BigInt(row % 2));
    const prediction = Float32Array.from(rows, (row) => (row % 2 === (row % 4 === 3 ? 0 : 1) ? 2 : -2));
    const inputs = { prediction: { data: prediction, shape: [100] }, target: { data: target, shape: [100] } };
    yield { name: `${first}`, first, inputs };
  }
}

if (process.argv[1] === import.meta.filename) {
  const definition = { task: "binary", identity: "position", dataset: { name: "squares", rows: 1000 } };
  const sealed = await score("from-node", definition, batches());
  console.log("accuracy", sealed.result.metrics.accuracy, "of", sealed.counted.rows, "rows");
}
