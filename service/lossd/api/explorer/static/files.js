/**
 * Arrays from pasted text and dropped files: rows of numbers, JSON, .csv, .npy, .npz and .safetensors, read in the page.
 *
 * An array is a tensor of safetensors.js, `{ dtype, shape, data }`. The dtype is null for arrays from text.
 */

import { decode, elementCount } from "./safetensors.js";

export const ENDINGS = [".npy", ".npz", ".safetensors", ".csv", ".tsv", ".txt", ".json"];

/** The reason why a text or a file cannot be read, as a sentence. */
export class Unreadable extends Error {}

/** The arrays of a file, `[{ name, array }]`. */
export async function read(file) {
  const stem = file.name.replace(/\.[^.]*$/, "");
  const ending = file.name.slice(stem.length).toLowerCase();
  if (ending === ".csv" || ending === ".tsv") return columns(await file.text(), stem);
  if (ending === ".txt" || ending === ".json") return [{ name: stem, array: parse(await file.text()) }];
  const buffer = await file.arrayBuffer();
  if (ending === ".npy") return [{ name: stem, array: npy(buffer) }];
  if (ending === ".npz") return npz(buffer);
  if (ending === ".safetensors") return Object.entries(safetensors(buffer)).map(([name, array]) => ({ name, array }));
  throw new Unreadable(`${file.name} is none of ${ENDINGS.join(", ")}.`);
}

function safetensors(buffer) {
  try {
    return decode(buffer).tensors;
  } catch (error) {
    throw new Unreadable(`This is not a safetensors file: ${error.message}.`);
  }
}

// Text

const NAMED = {
  nan: NaN,
  inf: Infinity,
  "+inf": Infinity,
  "-inf": -Infinity,
  infinity: Infinity,
  "-infinity": -Infinity,
  true: 1,
  false: 0,
};

function number(text) {
  const value = NAMED[text.toLowerCase()] ?? (text === "" ? undefined : Number(text));
  return value === undefined || (Number.isNaN(value) && text.toLowerCase() !== "nan") ? null : value;
}

/** An array from text: JSON if it starts with [, else a row for each line. A single row or column has one axis. */
export function parse(text) {
  const trimmed = text.trim();
  if (!trimmed) throw new Unreadable("The field is empty.");
  if (trimmed.startsWith("[")) return nested(trimmed);
  const rows = table(trimmed);
  return matrix(
    rows.map((row, i) =>
      row.map((cell) => {
        const value = number(cell);
        if (value === null) throw new Unreadable(`“${cell}” in line ${i + 1} is not a number.`);
        return value;
      }),
    ),
  );
}

function table(text) {
  const comma = text.includes("\t") ? "\t" : text.includes(";") ? ";" : ",";
  const cells = (line) =>
    line.includes(comma)
      ? line
          .replace(/[,;]\s*$/, "")
          .split(comma)
          .map((cell) => cell.trim())
      : line.trim().split(/\s+/);
  return text
    .split(/\r?\n/)
    .filter((line) => line.trim())
    .map(cells);
}

function matrix(rows) {
  const width = rows[0].length;
  const odd = rows.findIndex((row) => row.length !== width);
  if (odd > 0) throw new Unreadable(`Line ${odd + 1} has ${rows[odd].length} numbers, the first has ${width}.`);
  const data = rows.flat();
  return { dtype: null, shape: rows.length === 1 || width === 1 ? [data.length] : [rows.length, width], data };
}

function nested(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Unreadable("This is not valid JSON.");
  }
  const shape = [];
  for (let level = value; Array.isArray(level); [level] = level) shape.push(level.length);
  const data = [];
  collect(value, shape, 0, data);
  return { dtype: null, shape, data };
}

function collect(value, shape, depth, data) {
  if (depth === shape.length) {
    const found =
      typeof value === "number"
        ? value
        : typeof value === "boolean"
          ? Number(value)
          : typeof value === "string"
            ? number(value)
            : null;
    if (found === null) throw new Unreadable(`${JSON.stringify(value).slice(0, 30)} is not a number.`);
    data.push(found);
  } else if (!Array.isArray(value) || value.length !== shape[depth]) {
    throw new Unreadable("The lists differ in length.");
  } else for (const entry of value) collect(entry, shape, depth + 1, data);
}

/** The arrays of a table: each column by its name, all columns, and all columns except the target. */
function columns(text, stem) {
  const rows = unnumbered(table(text.trim().replace(/^\uFEFF/, "")));
  if (!rows.length) throw new Unreadable("This file is empty.");
  const titled = rows[0].some((cell) => number(cell.replace(/^"|"$/g, "")) === null);
  const names = titled ? rows[0].map((cell) => cell.replace(/^"|"$/g, "")) : null;
  const body = (titled ? rows.slice(1) : rows).map((row, i) =>
    row.map((cell) => {
      const value = number(cell);
      if (value === null) throw new Unreadable(`“${cell}” in row ${i + 1} is not a number.`);
      return value;
    }),
  );
  if (!body.length) throw new Unreadable("This file has a header but no rows.");
  const whole = matrix(body);
  if (!names || names.length < 2) return [{ name: names?.[0] ?? stem, array: whole }];
  const pick = (isPicked) => matrix(body.map((row) => row.filter((_, i) => isPicked(i))));
  const target = names.findIndex((name) => role(name) === "target");
  const last = target < 0 ? names.length - 1 : target;
  return [
    ...names.map((name, i) => ({ name, array: pick((at) => at === i) })),
    ...(names.length > 2
      ? [
          {
            name: `all but ${names[last]}`,
            array: pick((at) => at !== last),
            role: target < 0 ? undefined : "prediction",
          },
        ]
      : []),
    { name: "all columns", array: whole },
  ];
}

/** Rows without pandas' index, a first column without a name or named "Unnamed: 0". */
function unnumbered(rows) {
  const [head, ...body] = rows;
  const counts =
    head?.length > 1 && /^"?(Unnamed: 0)?"?$/.test(head[0]) && body.every(([cell]) => /^"?\d+"?$/.test(cell));
  return counts ? rows.map((row) => row.slice(1)) : rows;
}

const NAMES = {
  prediction: /^(y_?)?(pred(iction)?s?|hat|logits?|outputs?|scores?|proba(bilities)?|y_hat|x)$/i,
  target: /^(y|(y_?)?(true|targets?|labels?|classe?s?|ground_?truth|gt|masks?))$/i,
};

/** The input that an array of this name is usually for: prediction, target, or the name itself. */
export function role(name) {
  return Object.keys(NAMES).find((input) => NAMES[input].test(name)) ?? name;
}

// NumPy

const MAGIC = "\x93NUMPY";
const KINDS = {
  f8: ["F64", Float64Array],
  f4: ["F32", Float32Array],
  f2: ["F16", globalThis.Float16Array ?? Uint16Array],
  i8: ["I64", BigInt64Array],
  i4: ["I32", Int32Array],
  i2: ["I16", Int16Array],
  i1: ["I8", Int8Array],
  u1: ["U8", Uint8Array],
  b1: ["BOOL", Uint8Array],
  // Unsigned dtypes become the next wider signed dtype, which holds the same values.
  u2: ["I32", Uint16Array, Int32Array],
  u4: ["I64", Uint32Array, BigInt64Array],
};

/** The array of a .npy file of any version, in row-major order. */
export function npy(buffer) {
  const bytes = new Uint8Array(buffer);
  if (String.fromCharCode(...bytes.subarray(0, 6)) !== MAGIC) throw new Unreadable("This is not a .npy file.");
  const view = new DataView(buffer);
  const wide = bytes[6] >= 2;
  const from = wide ? 12 : 10;
  const start = from + (wide ? view.getUint32(8, true) : view.getUint16(8, true));
  const header = new TextDecoder().decode(bytes.subarray(from, start));
  const descr = /'descr':\s*'([<>|=])(\w+)'/.exec(header);
  const shape = (/'shape':\s*\(([^)]*)\)/.exec(header)?.[1] ?? "")
    .split(",")
    .filter((part) => part.trim())
    .map(Number);
  if (!descr) throw new Unreadable("The elements are not plain numbers.");
  const kind = KINDS[descr[2]];
  if (descr[1] === ">" && kind)
    throw new Unreadable("Its numbers are big-endian; save it with array.astype(array.dtype.newbyteorder('<')).");
  if (!kind) throw new Unreadable(`The dtype ${descr[2]} is not supported; save the array as float32 or int64.`);
  const [dtype, Type, Wider] = kind;
  const count = elementCount(shape);
  if (buffer.byteLength - start !== count * Type.BYTES_PER_ELEMENT)
    throw new Unreadable("The file has another size than its header states.");
  let data = new Type(buffer.slice(start));
  if (/'fortran_order':\s*True/.test(header)) data = rowMajor(data, shape);
  if (Wider) data = Wider === BigInt64Array ? BigInt64Array.from(data, BigInt) : Wider.from(data);
  return { dtype, shape, data };
}

function rowMajor(data, shape) {
  const turned = new data.constructor(data.length);
  const index = shape.map(() => 0);
  const strides = shape.map((_, axis) => elementCount(shape.slice(0, axis)));
  let from = 0;
  for (let to = 0; to < data.length; to += 1) {
    turned[to] = data[from];
    for (let axis = shape.length - 1; axis >= 0; axis -= 1) {
      index[axis] += 1;
      from += strides[axis];
      if (index[axis] < shape[axis]) break;
      from -= strides[axis] * shape[axis];
      index[axis] = 0;
    }
  }
  return turned;
}

// Zip, as NumPy writes it: the directory at the end has the place and the compression of each file.

const [END, ENTRY] = [0x06054b50, 0x02014b50];
const [STORED, DEFLATED] = [0, 8];
const WIDE = 0xffffffff;

async function npz(buffer) {
  const view = new DataView(buffer);
  let end = buffer.byteLength - 22;
  while (end >= 0 && view.getUint32(end, true) !== END) end -= 1;
  if (end < 0) throw new Unreadable("This is not a .npz file.");
  const arrays = [];
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left -= 1) {
    if (at + 46 > end || view.getUint32(at, true) !== ENTRY)
      throw new Unreadable("The directory of this .npz file is damaged.");
    const [method, size, offset] = [
      view.getUint16(at + 10, true),
      view.getUint32(at + 20, true),
      view.getUint32(at + 42, true),
    ];
    const [name, extra, comment] = [28, 30, 32].map((field) => view.getUint16(at + field, true));
    const path = new TextDecoder().decode(new Uint8Array(buffer, at + 46, name));
    if (size === WIDE || offset === WIDE) throw new Unreadable(`${path} is too large to be read here.`);
    const start = offset + 30 + view.getUint16(offset + 26, true) + view.getUint16(offset + 28, true);
    arrays.push({
      name: path.replace(/\.npy$/, ""),
      array: npy(await unpacked(buffer.slice(start, start + size), method)),
    });
    at += 46 + name + extra + comment;
  }
  return arrays;
}

async function unpacked(packed, method) {
  if (method === STORED) return packed;
  if (method !== DEFLATED) throw new Unreadable("The file has an unsupported compression.");
  try {
    return await new Response(
      new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw")),
    ).arrayBuffer();
  } catch {
    throw new Unreadable("The file is damaged: it cannot be decompressed.");
  }
}
