// Times: the rule by which a warm-up ends, and decibels and percentiles.

import assert from "node:assert/strict";
import { test } from "node:test";

import { measure, stable } from "../../../devices/web/measure.mjs";
import { percentile, SAME_DB, snrDb } from "../../../devices/web/metrics.mjs";

const JOB = { least_warmup: 2, most_warmup: 6, iterations: 5, images: 0, minutes: 0, most_seconds: 60 };
const BUNDLE = { golden: { trajectories: [{ last: null }] } };
const NOBODY = { warmup() {}, sample() {}, image() {}, moment() {} };
const PROGRAMS = { decoder: null };

// Calls that take as many milliseconds as the list says, by a clock that only they move.
function calls(list) {
  let number = 0,
    now = 0;
  performance.now = () => now;
  return async () => {
    now += list[Math.min(number++, list.length - 1)];
  };
}

test("two windows agree within five per cent of the later", () => {
  assert.equal(stable([1, 1, 1], 2), false);
  assert.equal(stable([9, 9, 1, 1, 1, 1], 2), true);
  assert.equal(stable([1.04, 1.04, 1, 1], 2), true);
  assert.equal(stable([1.06, 1.06, 1, 1], 2), false);
});

test("warm-up ends when two windows agree", async () => {
  const found = await measure(BUNDLE, PROGRAMS, JOB, calls([50, 9, 3, 3, 3, 3]), 80, NOBODY);
  assert.deepEqual(found.warmup_ms, [50, 9, 3, 3, 3, 3]);
  assert.deepEqual([found.first_ms, found.stable, found.samples_ms], [80, true, [3, 3, 3, 3, 3]]);
  assert.deepEqual([found.decoder_ms, found.image_ms, found.sustained], [[], [], []]);
});

test("warm-up ends after so many calls all the same, and says so", async () => {
  const found = await measure(BUNDLE, PROGRAMS, JOB, calls([64, 32, 16, 8, 4, 2, 1]), 80, NOBODY);
  assert.deepEqual([found.warmup_ms.length, found.stable], [6, false]);
});

test("both end after so many seconds, the timed calls not before there are three", async () => {
  const found = await measure(BUNDLE, PROGRAMS, { ...JOB, most_seconds: 1, iterations: 100 }, calls([600, 700, 900]), 80, NOBODY);
  assert.deepEqual([found.warmup_ms.length, found.samples_ms.length], [2, 3]);
});

test("a sustained curve has a moment for every few seconds", async () => {
  const found = await measure(BUNDLE, PROGRAMS, { ...JOB, minutes: 0.2 }, calls([1000]), 80, NOBODY);
  assert.deepEqual(
    found.sustained.map(({ seconds, calls: many, p50_ms: p50 }) => [seconds, many, p50]),
    [
      [5, 5, 1000],
      [10, 5, 1000],
      [15, 5, 1000],
    ],
  );
});

test("decibels and percentiles", () => {
  assert.equal(snrDb([1, 2], [1, 2]), SAME_DB);
  assert.equal(snrDb([1, NaN], [1, 2]), -SAME_DB);
  assert.ok(Math.abs(snrDb([3, 4], [3, 4.05]) - 40) < 1e-6);
  assert.deepEqual(
    [0, 50, 90, 100].map((percent) => percentile([4, 1, 3, 2], percent)),
    [1, 2.5, 3.7, 4],
  );
});
