// A bundle's plan and golden trajectories: edge_sd/diffusion/plan.py and edge_sd/bundle/golden.py, as far as they are needed to run.

import { require } from "./failure.mjs";
import { NAME } from "./noise.mjs";
import { Safetensors } from "./safetensors.mjs";

const AGAIN = "export the bundle again";
const COLUMNS = ["timestep", "p", "q", "u", "a", "a_next", "c"];

// { rows, history, start, programs: names, program: Int of each row, columns: { timestep, p, …, b, b_next: Float64Array } }
export function readPlan(bytes) {
  const file = new Safetensors(bytes, "plan.safetensors"),
    header = file.header();
  checkVersion("plan.safetensors", header, 1);
  const { history, programs } = header,
    rows = file.shape("timestep")[0];
  require(Number.isSafeInteger(history) &&
    history >= 1 &&
    Array.isArray(programs) &&
    rows >= 1, "plan.safetensors has no rows", AGAIN);
  const columns = Object.fromEntries(COLUMNS.map((name) => [name, file.read(name, "F64", [rows])]));
  for (const name of ["b", "b_next"]) columns[name] = file.read(name, "F64", [rows, history]);
  const program = Array.from(file.read("program", "I64", [rows]), Number);
  require(program.every(
    (index) => index >= 0 && index < programs.length,
  ), "plan.safetensors names a program that it does not have", AGAIN);
  const start = file.names().includes("start") ? file.read("start", "F64", [1])[0] : 1; // what the first noise is multiplied by
  return { rows, history, start, programs, program, columns };
}

// { seed: BigInt, labels, sample: (C, H, W), image: (3, H', W') or null, width, trajectories: [{ samples, predictions: one
// Float32Array a row, features: likewise, last, image }] }
export function readGolden(bytes, rows) {
  const file = new Safetensors(bytes, "golden.safetensors"),
    header = file.header();
  checkVersion("golden.safetensors", header, 2);
  require(header.noise === NAME, `golden.safetensors starts from noise of ${header.noise}, not ${NAME}`, AGAIN);
  const count = new Set(file.names().map((name) => name.split(".")[0])).size,
    labels = header.labels ?? [];
  require(count >= 1 && [0, count].includes(labels.length), "golden.safetensors holds no whole trajectories", AGAIN);
  const sample = file.shape("0.final"),
    width = file.shape("0.features")[1];
  const image = file.names().includes("0.image") ? file.shape("0.image") : null;
  const trajectories = Array.from({ length: count }, (_, index) => ({
    samples: split(file.read(`${index}.samples`, "F32", [rows, ...sample]), rows),
    predictions: split(file.read(`${index}.predictions`, "F32", [rows, ...sample]), rows),
    features: split(file.read(`${index}.features`, "F32", [rows, width]), rows),
    last: file.read(`${index}.final`, "F32", sample),
    image: image && file.read(`${index}.image`, "F32", image),
  }));
  return { seed: BigInt(header.seed), labels, sample, image, width, trajectories };
}

function split(values, rows) {
  const size = values.length / rows;
  return Array.from({ length: rows }, (_, row) => values.slice(row * size, (row + 1) * size));
}

function checkVersion(name, header, version) {
  require(header?.schema_version ===
    version, `${name} has schema version ${header?.schema_version}, this page reads ${version}`, AGAIN);
}
