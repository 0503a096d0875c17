/**
 * The safetensors format, both ways: an 8-byte little-endian header length, a JSON header, the tensors' bytes.
 *
 * A tensor is `{ dtype, shape, data }` with a dtype as the format writes it (F32) and a typed array. BF16 travels as its
 * 16 bits in a Uint16Array, as F16 does where the browser has no Float16Array.
 */

const ARRAYS = {
  F64: Float64Array,
  F32: Float32Array,
  F16: globalThis.Float16Array ?? Uint16Array,
  BF16: Uint16Array,
  I64: BigInt64Array,
  I32: Int32Array,
  I16: Int16Array,
  I8: Int8Array,
  U8: Uint8Array,
  BOOL: Uint8Array,
};
const PREFIX_BYTES = 8;
const ALIGNMENT = 64;

export const MEDIA_TYPE = "application/vnd.safetensors";

/** The number of elements of a shape. */
export const elementCount = (shape) => shape.reduce((product, axis) => product * axis, 1);

/** A tensor of numbers with a dtype, `F32` by default. */
export function tensor(numbers, shape = [numbers.length], dtype = "F32") {
  const data = dtype === "I64" ? BigInt64Array.from(numbers, (n) => BigInt(n)) : ARRAYS[dtype].from(numbers);
  if (data.length !== elementCount(shape)) throw new RangeError(`${data.length} numbers do not fill ${shape}`);
  return { dtype, shape, data };
}

/** The file of these tensors, by name; `metadata` maps names to strings. */
export function encode(tensors, metadata = {}) {
  // Wider elements first: every tensor is then aligned to the size of its elements.
  const entries = Object.entries(tensors).sort(([, a], [, b]) => b.data.BYTES_PER_ELEMENT - a.data.BYTES_PER_ELEMENT);
  const header = Object.keys(metadata).length ? { __metadata__: metadata } : {};
  let size = 0;
  for (const [name, { dtype, shape, data }] of entries) {
    header[name] = { dtype, shape, data_offsets: [size, size + data.byteLength] };
    size += data.byteLength;
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const start = Math.ceil((PREFIX_BYTES + text.length) / ALIGNMENT) * ALIGNMENT;
  const file = new Uint8Array(start + size);
  new DataView(file.buffer).setBigUint64(0, BigInt(start - PREFIX_BYTES), true);
  file.set(text, PREFIX_BYTES);
  file.fill(0x20, PREFIX_BYTES + text.length, start);
  for (const [name, { data }] of entries) {
    file.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), start + header[name].data_offsets[0]);
  }
  return file;
}

/** The tensors and metadata of a file, an ArrayBuffer; throws for an invalid file. */
export function decode(buffer) {
  if (buffer.byteLength < PREFIX_BYTES) throw new RangeError("it has fewer than 8 bytes");
  const start = PREFIX_BYTES + Number(new DataView(buffer).getBigUint64(0, true));
  if (start > buffer.byteLength) throw new RangeError("its header is incomplete");
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, PREFIX_BYTES, start - PREFIX_BYTES)));
  const { __metadata__: metadata = {}, ...entries } = header;
  const tensors = {};
  for (const [
    name,
    {
      dtype,
      shape,
      data_offsets: [begin, end],
    },
  ] of Object.entries(entries)) {
    const Type = ARRAYS[dtype];
    if (!Type) throw new RangeError(`${name} has the unsupported dtype ${dtype}`);
    if (end - begin !== elementCount(shape) * Type.BYTES_PER_ELEMENT || start + end > buffer.byteLength) {
      throw new RangeError(`the bytes of ${name} do not match its shape`);
    }
    tensors[name] = { dtype, shape, data: new Type(buffer.slice(start + begin, start + end)) };
  }
  return { tensors, metadata };
}

/** A tensor's elements as ordinary numbers. */
export function numbers({ dtype, data }) {
  if (dtype === "BF16") return Array.from(data, (bits) => fromBits(bits << 16));
  if (dtype === "F16" && data instanceof Uint16Array) return Array.from(data, half);
  return Array.from(data, Number);
}

const scratch = new DataView(new ArrayBuffer(4));

function fromBits(bits) {
  scratch.setInt32(0, bits);
  return scratch.getFloat32(0);
}

function half(bits) {
  const sign = bits >> 15 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}
