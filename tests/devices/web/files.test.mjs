// Files: what is whole is read, what is damaged is refused in words.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";

import { Failure } from "../../../devices/web/failure.mjs";
import { parseExact, Safetensors, writeSafetensors } from "../../../devices/web/safetensors.mjs";
import { sha256, sha256Here } from "../../../devices/web/sha256.mjs";

const values = Float32Array.of(1, -2, 0.5, 3, 1e-30, 7);
const whole = () =>
  writeSafetensors(
    [
      ["a", [2, 2], values.slice(0, 4)],
      ["b", [2], values.slice(4)],
    ],
    '{"seed":9223372036854775807}',
  ).buffer;

// A file of a header that anybody may have written.
function file(header, data = new Uint8Array(16)) {
  const text = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header)),
    bytes = new Uint8Array(8 + text.length + data.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(text, 8);
  bytes.set(data, 8 + text.length);
  return bytes.buffer;
}

const refused = (bytes, words) =>
  assert.throws(
    () => new Safetensors(bytes, "x"),
    (error) => error instanceof Failure && words.test(error.message) && Boolean(error.hint),
    String(words),
  );
const tensor = (changes) => ({ dtype: "F32", shape: [4], data_offsets: [0, 16], ...changes });

test("what is written is read", () => {
  const read = new Safetensors(whole(), "x");
  assert.deepEqual(read.names(), ["a", "b"]);
  assert.deepEqual(read.read("a", "F32", [2, 2]), values.slice(0, 4));
  assert.deepEqual(read.read("b", "F32", [2]), values.slice(4));
  assert.equal(read.header().seed, "9223372036854775807");
});

test("a file cut short anywhere is refused", () => {
  const bytes = whole();
  for (let length = 0; length < bytes.byteLength; length++) refused(bytes.slice(0, length), /not a whole safetensors file/);
});

test("no byte of a header that is turned over gets past unseen or breaks anything", () => {
  for (let at = 0; at < 60; at++) {
    const bytes = new Uint8Array(whole());
    bytes[at] ^= 0x80;
    refused(bytes.buffer, /not a whole safetensors file/);
  }
});

test("headers that do not add up are refused", () => {
  refused(file("[]"), /no JSON object/);
  refused(file("{"), /no JSON/);
  refused(file({ a: tensor({ dtype: "F33" }) }), /unknown dtype F33/);
  refused(file({ a: tensor({ shape: [5] }) }), /does not lie/);
  refused(file({ a: tensor({ shape: [-4] }) }), /no sizes/);
  refused(file({ a: tensor({ shape: [2 ** 31, 2 ** 31] }) }), /too large/);
  refused(file({ a: tensor({ data_offsets: [0, 17], shape: [4] }) }), /does not lie/);
  refused(file({ a: tensor({ data_offsets: [0] }) }), /no sizes/);
  refused(file({ a: tensor({ more: 1 }) }), /or has more/);
  refused(file({ a: { dtype: "F32" } }), /lacks/);
  refused(file({ a: tensor(), b: tensor() }), /overlap or leave gaps/);
  refused(file({ a: tensor({ shape: [3], data_offsets: [4, 16] }) }), /overlap or leave gaps/);
  refused(file({ a: tensor() }, new Uint8Array(20)), /goes on/);
  refused(file({ __metadata__: { a: 1 }, a: tensor() }), /no texts/);
});

test("a tensor is of the shape and type that it is asked for, and finite", () => {
  const read = new Safetensors(whole(), "x");
  assert.throws(() => read.read("a", "F32", [4]), /expected F32 \(4\)/);
  assert.throws(() => read.read("a", "F64", [2]), /expected F64/);
  assert.throws(() => read.read("c", "F32", [1]), /holds no tensor c/);
  const nan = new Safetensors(writeSafetensors([["a", [1], Float32Array.of(NaN)]], "{}").buffer, "x");
  assert.throws(() => nan.read("a", "F32", [1]), /a NaN or an infinity/);
  assert.throws(() => new Safetensors(file({}, new Uint8Array(0)), "x").header(), /no 'edge_sd'/);
});

test("integers beyond 2⁵³ keep their digits, whatever stands in texts", () => {
  assert.deepEqual(parseExact('{"a":12345678901234567890,"b":"x \\" 12345678901234567890","c":-1.5e3,"d":[1,0]}'), {
    a: "12345678901234567890",
    b: 'x " 12345678901234567890',
    c: -1500,
    d: [1, 0],
  });
});

test("SHA-256 is Node's at every length around a block, by the browser's and by ours", async () => {
  const bytes = new Uint8Array(1000).map((_, i) => i * 31);
  for (const length of [0, 1, 3, 55, 56, 57, 63, 64, 65, 119, 120, 128, 1000]) {
    const part = bytes.slice(0, length),
      expected = createHash("sha256").update(part).digest("hex");
    assert.equal(sha256Here(part.buffer), expected);
    assert.equal(await sha256(part.buffer), expected);
  }
});
