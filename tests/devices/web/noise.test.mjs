// Noise: the specification's own test vectors, to the bit.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { gaussian, NAME, philox4x32 } from "../../../devices/web/noise.mjs";
import { parseExact } from "../../../devices/web/safetensors.mjs";

const vectors = parseExact(readFileSync(new URL("../../../edge_sd/diffusion/vectors.json", import.meta.url), "utf8"));
const hexadecimal = (word) => word.toString(16).padStart(8, "0");

test("the generator is the one that the vectors are of", () => assert.equal(vectors.generator, NAME));

test("philox", () => {
  assert.ok(vectors.philox.length > 0);
  for (const { counter, key, words } of vectors.philox) assert.deepEqual(philox4x32(counter, key).map(hexadecimal), words);
});

test("gaussian", () => {
  assert.ok(vectors.gaussian.length > 0);
  for (const { seed, index, row, values, sum } of vectors.gaussian) {
    const bits = new Uint32Array(gaussian(BigInt(seed), BigInt(index), row, 3072).buffer);
    assert.deepEqual(Array.from(bits.slice(0, 8), hexadecimal), values);
    assert.equal(
      bits.reduce((total, word) => (total + word) % 2 ** 32, 0),
      sum,
    );
    // Any number of values is the beginning of more.
    assert.deepEqual(gaussian(BigInt(seed), BigInt(index), row, 13), gaussian(BigInt(seed), BigInt(index), row, 64).slice(0, 13));
  }
});
