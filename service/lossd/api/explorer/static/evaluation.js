/** A request to POST /v1/evaluate from arrays and options, in JSON or safetensors, and its answer. */

import { elementCount, encode, MEDIA_TYPE, numbers, tensor } from "./safetensors.js";

const WIRE = {
  F64: "float64",
  F32: "float32",
  F16: "float16",
  BF16: "bfloat16",
  I64: "int64",
  I32: "int32",
  I16: "int16",
  I8: "int8",
  U8: "uint8",
  BOOL: "bool",
};
export const dtypeName = (dtype) => WIRE[dtype];

/** An array with a dtype: a file's own; for text, int64 if all numbers are integers and the input takes integers. */
export function typed(array, input) {
  const kinds = new Set(input.types.flatMap(({ dtypes }) => dtypes));
  if (array.dtype) return { ...array, floatsOnly: !kinds.has("integer") };
  const whole = array.data.every((value) => Number.isSafeInteger(value));
  return tensor(array.data, array.shape, kinds.has("integer") && (whole || !kinds.has("float")) ? "I64" : "F32");
}

/**
 * A tensor as JSON: nested lists if the service reads them as the same dtype, else base64. JSON writes 1.0 as 1, so
 * the service reads floats without a fraction as integers, unless the input takes only floats (`floatsOnly`).
 */
export function inJson(array) {
  if (!array.dtype) return array; // nested lists already
  const { dtype, shape, data, floatsOnly = true } = array;
  const readBack =
    (dtype === "F32" && (floatsOnly || !data.every(Number.isInteger))) ||
    (dtype === "I64" && data.every((value) => Number.isSafeInteger(Number(value))));
  if (!readBack || !shape.length || shape.includes(0)) return { dtype: WIRE[dtype], shape, data: base64(data) };
  return nest(dtype === "F32" ? Array.from(data, shortest) : numbers(array), shape);
}

/** The fewest digits of the same float32; NaN and infinities are strings. */
function shortest(value) {
  if (!Number.isFinite(value)) return String(value);
  for (const digits of [6, 7, 8]) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === value) return short;
  }
  return Number(value.toPrecision(9));
}

export function nest(flat, shape) {
  if (shape.length === 1) return flat;
  const step = elementCount(shape.slice(1));
  return Array.from({ length: shape[0] }, (_, i) => nest(flat.slice(i * step, (i + 1) * step), shape.slice(1)));
}

function base64(data) {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(text);
}

/** The request as JSON, with its inputs. */
export const body = ({ inputs, ...rest }) => ({
  ...rest,
  inputs: Object.fromEntries(Object.entries(inputs).map(([name, array]) => [name, inJson(array)])),
});

/** The request as a safetensors file, for `curl --data-binary`. */
export const asFile = ({ inputs, ...rest }) =>
  new Blob([encode(inputs, { request: JSON.stringify(rest) })], { type: MEDIA_TYPE });

/**
 * The answer of either format: `{ loss, gradients: { name: { shape, values } }, hessians, … }`; loss is a number or a
 * tensor, and hessians are as gradients.
 */
export async function ask(api, request, form, signal) {
  if (form === "safetensors") {
    const { tensors, result } = await api.evaluateTensors(request, signal);
    const plain = Object.fromEntries(
      Object.entries(tensors).map(([name, tensor]) => [name, { shape: tensor.shape, values: numbers(tensor) }]),
    );
    const derivativesOf = (output) =>
      Object.fromEntries(
        Object.entries(plain)
          .filter(([name]) => name.startsWith(`${output}.`))
          .map(([name, found]) => [name.slice(output.length + 1), found]),
      );
    const derivatives = { gradients: derivativesOf("gradient"), hessians: derivativesOf("hessian") };
    return { ...result, ...(plain.loss && { loss: plain.loss }), ...derivatives };
  }
  const { gradient = {}, hessian = {}, ...result } = await api.evaluate(body(request), signal);
  const [gradients, hessians] = [gradient, hessian].map((found) =>
    Object.fromEntries(Object.entries(found).map(([name, array]) => [name, flat(array)])),
  );
  return { ...result, ...(typeof result.loss === "object" && { loss: flat(result.loss) }), gradients, hessians };
}

function flat(value) {
  if (!Array.isArray(value)) {
    const dtype = Object.keys(WIRE).find((name) => WIRE[name] === value.dtype);
    const bytes = Uint8Array.from(atob(value.data), (letter) => letter.charCodeAt(0));
    return {
      shape: value.shape,
      values: numbers({
        dtype,
        data: new {
          F64: Float64Array,
          F32: Float32Array,
          F16: globalThis.Float16Array ?? Uint16Array,
          BF16: Uint16Array,
        }[dtype](bytes.buffer),
      }),
    };
  }
  const shape = [];
  for (let level = value; Array.isArray(level); [level] = level) shape.push(level.length);
  return { shape, values: value.flat(Infinity) };
}
