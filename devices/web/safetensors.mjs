// Safetensors files, read strictly, and written.
//
// A file is the length of its header (8 bytes, little-endian), the header (JSON: name → dtype, shape, offsets), and the data.
// What is read must add up: known dtypes, sizes that are those of the shapes, data that lie one after the other without gap or
// overlap up to the end of the file.

import { Failure } from "./failure.mjs";

const WIDTHS = { F64: 8, I64: 8, U64: 8, F32: 4, I32: 4, U32: 4, F16: 2, BF16: 2, I16: 2, U16: 2, I8: 1, U8: 1, BOOL: 1 };
const ARRAYS = { F64: Float64Array, I64: BigInt64Array, F32: Float32Array };
const MOST_HEADER = 100_000_000;
// Under this name edge_sd/files.py keeps a file's own header.
export const HEADER = "edge_sd";

// JSON whose integers beyond 2⁵³, which JavaScript's numbers would round, come out as strings of their digits.
export function parseExact(text) {
  return JSON.parse(text.replace(/"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g, (part) => (/^-?\d{16,}$/.test(part) ? `"${part}"` : part)));
}

export class Safetensors {
  // bytes: ArrayBuffer; name: for errors.
  constructor(bytes, name) {
    this.name = name;
    this.refuse(bytes.byteLength < 8, "its header is cut short");
    const length = new DataView(bytes).getBigUint64(0, true);
    this.refuse(length > MOST_HEADER || Number(length) > bytes.byteLength - 8, "its header is cut short");
    this.data = bytes.slice(8 + Number(length)); // at an offset of its own, which typed arrays want to be a multiple of theirs
    let header;
    try {
      header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(bytes, 8, Number(length))));
    } catch (error) {
      this.refuse(true, `its header is no JSON (${error.message})`);
    }
    this.refuse(!isObject(header), "its header is no JSON object");
    const { __metadata__: metadata = {}, ...tensors } = header;
    this.refuse(
      !isObject(metadata) || Object.values(metadata).some((value) => typeof value !== "string"),
      "its metadata are no texts",
    );
    this.metadata = metadata;
    this.tensors = new Map(Object.entries(tensors));
    this.check();
  }

  // The file's own header, as edge_sd/files.py writes it.
  header() {
    this.refuse(!Object.hasOwn(this.metadata, HEADER), `its metadata have no '${HEADER}'`);
    try {
      return parseExact(this.metadata[HEADER]);
    } catch (error) {
      throw new Failure(`${this.name}: its metadata are no JSON (${error.message})`, "export the bundle again");
    }
  }

  names() {
    return [...this.tensors.keys()];
  }

  shape(name) {
    return this.find(name).shape;
  }

  // A tensor's values, all finite; it must be there, of that dtype and shape.
  read(name, dtype, shape) {
    const tensor = this.find(name);
    if (tensor.dtype !== dtype || !same(tensor.shape, shape)) {
      throw new Failure(
        `${this.name}: tensor ${name} is ${tensor.dtype} (${tensor.shape.join(", ")}), expected ${dtype} (${shape.join(", ")})`,
        "export the bundle again",
      );
    }
    const values = new ARRAYS[dtype](this.data.slice(...tensor.data_offsets));
    if (dtype !== "I64" && !values.every(Number.isFinite)) {
      throw new Failure(`${this.name}: tensor ${name} holds a NaN or an infinity`, "export the bundle again");
    }
    return values;
  }

  find(name) {
    if (!this.tensors.has(name)) throw new Failure(`${this.name} holds no tensor ${name}`, "export the bundle again");
    return this.tensors.get(name);
  }

  refuse(bad, why) {
    if (bad) throw new Failure(`${this.name} is not a whole safetensors file: ${why}`, "was its download or copy cut short?");
  }

  check() {
    const places = [];
    for (const [name, tensor] of this.tensors) {
      const fields = isObject(tensor) ? Object.keys(tensor).sort().join() : "";
      this.refuse(fields !== "data_offsets,dtype,shape", `tensor ${name} lacks its dtype, shape or place, or has more`);
      const { dtype, shape, data_offsets: place } = tensor;
      this.refuse(!Object.hasOwn(WIDTHS, dtype), `tensor ${name} is of the unknown dtype ${dtype}`);
      this.refuse(!areSizes(shape) || !areSizes(place) || place.length !== 2, `tensor ${name} has no sizes`);
      const bytes = shape.reduce((product, size) => product * size, WIDTHS[dtype]);
      this.refuse(!Number.isSafeInteger(bytes), `tensor ${name} is too large`);
      const [begin, end] = place;
      this.refuse(end > this.data.byteLength || end - begin !== bytes, `tensor ${name} does not lie where its header says`);
      places.push(place);
    }
    places.sort(([a, b], [c, d]) => a - c || b - d);
    let reached = 0;
    for (const [begin, end] of places) {
      this.refuse(begin !== reached, "its tensors overlap or leave gaps");
      reached = end;
    }
    this.refuse(reached !== this.data.byteLength, "it goes on after its last tensor");
  }
}

// A file of float32 tensors: [name, shape, Float32Array] each, and the header, a JSON text. → Uint8Array
export function writeSafetensors(tensors, header) {
  let end = 0;
  const entries = tensors.map(([name, shape, values]) => {
    const begin = end;
    end += values.byteLength;
    return [name, { dtype: "F32", shape, data_offsets: [begin, end] }];
  });
  let text = JSON.stringify({ __metadata__: { [HEADER]: header }, ...Object.fromEntries(entries) });
  let head = new TextEncoder().encode(text);
  head = new TextEncoder().encode((text += " ".repeat((8 - (head.length % 8)) % 8)));
  const file = new Uint8Array(8 + head.length + end);
  new DataView(file.buffer).setBigUint64(0, BigInt(head.length), true);
  file.set(head, 8);
  let at = 8 + head.length;
  for (const [, , values] of tensors) {
    file.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), at);
    at += values.byteLength;
  }
  return file;
}

export function same(a, b) {
  return a.length === b.length && a.every((value, i) => value === b[i]);
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function areSizes(values) {
  return Array.isArray(values) && values.every((value) => Number.isSafeInteger(value) && value >= 0);
}
