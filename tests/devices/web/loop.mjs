// Follow a plan with given predictions, as the page does: node loop.mjs PLAN PREDICTIONS SEED IMAGE OUTPUT

import { readFileSync, writeFileSync } from "node:fs";

import { Loop } from "../../../devices/web/loop.mjs";
import { readPlan } from "../../../devices/web/plan.mjs";
import { Safetensors, writeSafetensors } from "../../../devices/web/safetensors.mjs";

const [plan, predictions, seed, image, output] = process.argv.slice(2);
const rows = readPlan(new Uint8Array(readFileSync(plan)).buffer),
  file = new Safetensors(new Uint8Array(readFileSync(predictions)).buffer, predictions);
const shape = file.shape("predictions"),
  size = shape.slice(1).reduce((product, side) => product * side, 1);
const told = file.read("predictions", "F32", shape),
  loop = new Loop(rows, BigInt(seed), BigInt(image), size),
  tensors = [["0", [size], loop.x]];
for (let row = 0; row < rows.rows; row++) {
  loop.advance(told.slice(row * size, (row + 1) * size));
  tensors.push([String(row + 1), [size], loop.x]);
}
writeFileSync(output, writeSafetensors(tensors, "{}"));
