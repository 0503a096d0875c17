// A loss, its gradient and metrics from JavaScript: typed arrays out, typed arrays back, no dependency.
//
//     node client/examples/node/evaluate.mjs [http://127.0.0.1:8000]
//
// Needs Node 20.11 or newer; what is exported here works in browsers too. A service that asks for a key gets the one in
// LOSSD_API_KEY.

const MEDIA_TYPE = "application/vnd.safetensors";
const { argv = [], env = {} } = globalThis.process ?? {};

const DTYPES = new Map([
  [Float64Array, "F64"],
  [Float32Array, "F32"],
  [BigInt64Array, "I64"],
  [Int32Array, "I32"],
  [Int16Array, "I16"],
  [Int8Array, "I8"],
  [Uint8Array, "U8"],
]);
const ARRAYS = new Map([...DTYPES].map(([array, dtype]) => [dtype, array]));

// #region encode
/**
 * A safetensors file as a list of its pieces: the length of the header, the header, each tensor's own memory.
 *
 * @param {Record<string, {data: ArrayBufferView, shape: number[]}>} tensors Row-major, by name.
 * @param {Record<string, string>} metadata
 */
export function encode(tensors, metadata) {
  // Wide elements first, so that every tensor starts on a multiple of its element's size.
  const ordered = Object.entries(tensors).sort(
    ([, a], [, b]) => b.data.BYTES_PER_ELEMENT - a.data.BYTES_PER_ELEMENT,
  );
  const header = { __metadata__: metadata };
  let position = 0;
  for (const [name, { data, shape }] of ordered) {
    const end = position + data.byteLength;
    header[name] = { dtype: DTYPES.get(data.constructor), shape, data_offsets: [position, end] };
    position = end;
  }
  const utf8 = new TextEncoder();
  let text = utf8.encode(JSON.stringify(header));
  text = utf8.encode(JSON.stringify(header) + " ".repeat((8 - (text.length % 8)) % 8));
  const length = new DataView(new ArrayBuffer(8));
  length.setBigUint64(0, BigInt(text.length), true);
  return [length, text, ...ordered.map(([, { data }]) => data)];
}
// #endregion

// #region decode
/**
 * The tensors of a safetensors file, as views into its buffer, and its metadata.
 *
 * @param {ArrayBuffer} buffer
 */
export function decode(buffer) {
  const start = 8 + Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, start - 8)));
  const { __metadata__: metadata = {}, ...entries } = header;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [begin, end] }] of Object.entries(entries)) {
    const Elements = ARRAYS.get(dtype);
    if (!Elements) throw new Error(`${name} has dtype ${dtype}, which JavaScript has no array for`);
    tensors[name] = { data: new Elements(buffer, start + begin, (end - begin) / Elements.BYTES_PER_ELEMENT), shape };
  }
  return { tensors, metadata };
}
// #endregion

/**
 * Ask a service to evaluate.
 *
 * @param {string} url Where it is.
 * @param {object} request What to compute: {loss: {name, …}, outputs, gradient, metrics}.
 * @param {Record<string, {data: ArrayBufferView, shape: number[]}>} inputs
 * @returns The answer's JSON object, with the gradients as `gradients` by input.
 */
export async function evaluate(url, request, inputs) {
  const headers = { "Content-Type": MEDIA_TYPE, Accept: MEDIA_TYPE };
  if (env.LOSSD_API_KEY) headers.Authorization = `Bearer ${env.LOSSD_API_KEY}`;
  const body = new Blob(encode(inputs, { request: JSON.stringify(request) }));
  const response = await fetch(`${url}/v1/evaluate`, { method: "POST", headers, body });
  if (!response.ok) {
    const problem = await response.json();
    throw new Error(`${problem.title}: ${problem.detail} (request ${problem.request_id})`);
  }
  const { tensors, metadata } = decode(await response.arrayBuffer());
  const result = { ...JSON.parse(metadata.result), gradients: {} };
  for (const [name, tensor] of Object.entries(tensors)) {
    if (name.startsWith("gradient.")) result.gradients[name.slice("gradient.".length)] = tensor;
    else result[name] = tensor;
  }
  return result;
}

if (argv.length > 1 && import.meta.filename === argv[1]) {
  const [url = "http://127.0.0.1:8000"] = argv.slice(2);
  const prediction = { data: Float32Array.of(2.0, 1.0, 0.1, 0.5, 2.5, 0.3), shape: [2, 3] };
  const target = { data: BigInt64Array.of(0n, 1n), shape: [2] };
  const result = await evaluate(url, { loss: { name: "focal", gamma: 2.0 } }, { prediction, target });
  console.log("loss", result.loss);
  console.log("gradient", result.gradients.prediction.shape, result.gradients.prediction.data);
  console.dir({ metrics: result.metrics }, { depth: null });
}
