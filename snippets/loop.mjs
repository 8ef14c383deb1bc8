// Draw a bundle's golden image with ONNX Runtime Web, in a browser or in Node. The loop is `sample`; the rest reads files and makes
// the noise, as docs/BUNDLE.md and docs/PLANS.md say.
//
//   in a page:  import * as ort from "onnxruntime-web/wasm";
//               const { image, shape } = await draw(ort, async (name) => (await fetch(`NAME.edgesd/${name}`)).arrayBuffer());
//   in Node:    node loop.mjs NAME.edgesd ONNXRUNTIME-WEB.mjs [INDEX [OUT]]
//
// ONNXRUNTIME-WEB.mjs is ort.wasm.bundle.min.mjs of the package onnxruntime-web, its .wasm beside it. OUT gets the image's float32
// values, (C, H, W), little-endian.

const f = Math.fround; // float64 rounded to float32 after each operation is float32's own result

export async function sample(plan, programs, rows, noise) {
  const start = f(plan.start?.[0] ?? 1),
    history = plan.b.length / rows.length;
  let x = noise(-1).map((z) => start * z),
    base = x,
    memory = []; // newest first
  const add = (sum, weights, i) =>
    memory.reduce((total, m, j) => total.map((value, k) => value + f(f(weights[i * history + j]) * m[k])), sum);
  for (let i = 0; i < rows.length; i++) {
    const [p, q, u, a, next, c] = ["p", "q", "u", "a", "a_next", "c"].map((name) => f(plan[name][i]));
    const e = await programs[plan.program[i]](x, rows[i]);
    memory = [x.map((value, k) => f(p * value) + f(q * e[k])), ...memory].slice(0, history);
    base = add(x.map((value, k) => f(u * value) + f(a * base[k])), plan.b, i); // prettier-ignore
    x = add(base.map((value) => next * value), plan.b_next, i); // prettier-ignore
    if (c !== 0) {
      const z = noise(i);
      x = x.map((value, k) => value + f(c * z[k]));
    }
  }
  return x;
}

// fetchFile: name → ArrayBuffer of one of the bundle's files; index: of the golden trajectory.
export async function draw(ort, fetchFile, index = 0) {
  const manifest = JSON.parse(new TextDecoder().decode(await fetchFile("manifest.json")));
  expectVersion("manifest.json", manifest, 3);
  const [header, plan] = safetensors(await read("plan.safetensors"));
  expectVersion("plan.safetensors", header, 1);
  const [goldenHeader, golden, shapes] = safetensors(await read("golden.safetensors"));
  expectVersion("golden.safetensors", goldenHeader, 2);
  plan.program = Array.from(plan.program, Number);

  const programs = await Promise.all(header.programs.map(load));
  const temporal = await load("temporal"),
    decoder = await load("decoder"),
    steps = plan.timestep.length;
  let rows = [];
  if (goldenHeader.labels.length > 0) {
    const label = Int32Array.of(goldenHeader.labels[index]);
    for (const time of plan.timestep) rows.push(await temporal(Float32Array.of(time), label));
  } else {
    const width = plan.features.length / steps;
    rows = Array.from(plan.timestep, (_, i) => plan.features.slice(i * width, (i + 1) * width));
  }
  const count = shapes["0.final"].reduce((product, size) => product * size, 1);
  let image = await sample(plan, programs, rows, (row) => gaussian(goldenHeader.seed, BigInt(index), row, count));
  if (decoder) image = await decoder(image);
  const name = `${index}.${decoder ? "image" : "final"}`;
  return { image, shape: shapes[name], golden: golden[name] };

  // One of the bundle's files, as it was exported. (crypto.subtle is there on https and on localhost.)
  async function read(name) {
    const data = await fetchFile(name);
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
    const hex = Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (hex !== manifest.files[name].sha256) throw new Error(`${name} has changed`);
    return data;
  }

  // An ONNX program as a function of its inputs, in the contract's order; null where the bundle has none of that name.
  async function load(name) {
    const found = manifest.programs.find((one) => one.target === "onnx" && one.name === name);
    if (!found) return null;
    const { inputs, outputs } = manifest.contracts.find((one) => one.program === name);
    const shared = "weights.bin" in manifest.files ? [{ path: "weights.bin", data: new Uint8Array(await read("weights.bin")) }] : [];
    const slower = found.options.layout === "nchw" && { extra: { optimization: { disable_specified_optimizers: "NhwcTransformer" } } };
    const session = await ort.InferenceSession.create(new Uint8Array(await read(found.file)), {
      executionProviders: ["wasm"],
      externalData: shared,
      ...slower,
    });
    return async (...values) => {
      const feeds = Object.fromEntries(inputs.map((spec, i) => [spec.name, new ort.Tensor(spec.dtype, values[i], spec.shape)]));
      return (await session.run(feeds))[outputs[0].name].data.slice();
    };
  }
}

// A safetensors file: the header that edge-sd keeps in its metadata, the tensors by name, and their shapes.
function safetensors(data) {
  const size = Number(new DataView(data).getBigUint64(0, true));
  const { __metadata__: metadata, ...entries } = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 8, size)));
  const header = JSON.parse(metadata.edge_sd);
  // Integers of 64 bits, which JSON.parse rounds.
  if ("seed" in header) header.seed = BigInt(/"seed": ?(\d+)/.exec(metadata.edge_sd)[1]);
  const types = { F64: Float64Array, F32: Float32Array, I64: BigInt64Array };
  const tensors = {},
    shapes = {};
  for (const [name, { dtype, shape, data_offsets: places }] of Object.entries(entries)) {
    tensors[name] = new types[dtype](data.slice(...places.map((place) => 8 + size + place)));
    shapes[name] = shape;
  }
  return [header, tensors, shapes];
}

function expectVersion(name, { schema_version: found }, known) {
  if (found !== known) throw new Error(`${name} has schema version ${found}, this reads ${known}`);
}

// Philox-4×32-10 and Box–Muller, to the bit what the golden trajectories start from. seed and index are BigInt.
export function gaussian(seed, index, row, count) {
  const low = (value) => Number(value & 0xffffffffn),
    high = (value) => Number(value >> 32n);
  const values = new Float32Array(count);
  for (let block = 0; 4 * block < count; block++) {
    let [c0, c1, c2, c3] = [block, row + 1, low(index), high(index)],
      [k0, k1] = [low(seed), high(seed)];
    for (let round = 0; round < 10; round++) {
      const p0 = BigInt(c0) * 0xd2511f53n,
        p1 = BigInt(c2) * 0xcd9e8d57n;
      [c0, c1, c2, c3] = [(high(p1) ^ c1 ^ k0) >>> 0, low(p1), (high(p0) ^ c3 ^ k1) >>> 0, low(p0)];
      [k0, k1] = [(k0 + 0x9e3779b9) >>> 0, (k1 + 0xbb67ae85) >>> 0];
    }
    [...boxMuller(c0, c1), ...boxMuller(c2, c3)].forEach((value, i) => {
      if (4 * block + i < count) values[4 * block + i] = value;
    });
  }
  return values;
}

const factorial = (n) => (n < 2 ? 1 : n * factorial(n - 1));
const LN = Array.from({ length: 11 }, (_, k) => 1 / (2 * k + 1));
const SIN = Array.from({ length: 9 }, (_, k) => (-1) ** k / factorial(2 * k + 1));
const COS = Array.from({ length: 10 }, (_, k) => (-1) ** k / factorial(2 * k));
const horner = (x, coefficients) => coefficients.reduceRight((total, coefficient) => total * x + coefficient);

function boxMuller(w0, w1) {
  let m = (2 * w0 + 1) * 2 ** -33,
    e = 0;
  for (; m < 0.7071067811865476; e--) m *= 2;
  const s = (m - 1) / (m + 1),
    radius = Math.sqrt(-2 * (e * 0.6931471805599453 + 2 * s * horner(s * s, LN)));
  const halfPi = 1.5707963267948966,
    t = ((w1 & 0x3fffffff) + 0.5) * 2 ** -30 * halfPi - halfPi / 2;
  const sin = t * horner(t * t, SIN),
    cos = horner(t * t, COS),
    turn = w1 >>> 30;
  const [x, y] = turn % 2 ? [sin, cos] : [cos, sin];
  return [radius * (turn === 1 || turn === 2 ? -x : x), radius * (turn >= 2 ? -y : y)];
}

async function main(folder, module, index = "0", out = "") {
  const { readFile, writeFile } = await import("node:fs/promises");
  const { pathToFileURL } = await import("node:url");
  const ort = await import(pathToFileURL(module).href);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = await readFile(new URL("ort-wasm-simd-threaded.wasm", pathToFileURL(module)));
  const bytes = async (name) => new Uint8Array(await readFile(`${folder}/${name}`)).buffer;
  const { image, shape, golden } = await draw(ort, bytes, Number(index));
  let signal = 0,
    noise = 0,
    largest = 0;
  golden.forEach((value, i) => {
    signal += value ** 2;
    noise += (image[i] - value) ** 2;
    largest = Math.max(largest, Math.abs(image[i] - value));
  });
  const snr = 10 * Math.log10(signal / Math.max(noise, 1e-300));
  console.log(`image ${index}, ${shape.join("×")}: ${snr.toFixed(1)} dB, largest difference ${largest.toExponential(1)}`);
  if (out) await writeFile(out, new Uint8Array(image.buffer, image.byteOffset, image.byteLength));
}

// Imported by a page or by another module, it only offers `draw`.
if (globalThis.process?.argv?.[1] && import.meta.url.endsWith("/" + process.argv[1].split("/").pop())) {
  await main(...process.argv.slice(2));
}
