// How times are taken, as edge_sd/devices/_measuring.py says: load, first call and steady state told apart; warm-up goes on until
// two windows of calls in turn have medians that differ by no more than 5 %, at most as long as the job says; every call is timed
// by itself. All times are in milliseconds, of performance.now().

import { Loop } from "./loop.mjs";
import { percentile } from "./metrics.mjs";

const AGREE = 0.05;
const LEAST_CALLS = 3;
const WINDOW_MS = 5000; // of the sustained curve

export async function timed(call) {
  const start = performance.now();
  await call();
  return performance.now() - start;
}

// Whether the medians of the last two windows agree.
export function stable(times, window) {
  if (times.length < 2 * window) return false;
  const last = percentile(times.slice(-window), 50),
    before = percentile(times.slice(-2 * window, -window), 50);
  return Math.abs(last - before) <= AGREE * last;
}

// Call k of a denoiser: with the inputs of the first golden trajectory's rows in turn.
export function stepper({ plan, golden }, { denoisers }) {
  let number = 0;
  const [{ samples, features }] = golden.trajectories;
  return () => {
    const row = number++ % plan.rows;
    return denoisers[plan.program[row]].call(samples[row], features[row]);
  };
}

// step: one call; first: how long the very first one took; on: { warmup(times), sample(times), image(done), moment(moment) }
// → the fields of a Measurement that are times
export async function measure(bundle, programs, job, step, first, on) {
  const call = () => timed(step),
    warmup = [],
    samples = [];
  let began = performance.now();
  const within = () => performance.now() - began <= 1000 * job.most_seconds;
  while (!stable(warmup, job.least_warmup) && warmup.length < job.most_warmup && within()) {
    warmup.push(await call());
    await on.warmup(warmup);
  }
  began = performance.now();
  while (samples.length < job.iterations && (samples.length < LEAST_CALLS || within())) {
    samples.push(await call());
    await on.sample(samples);
  }
  const found = {
    first_ms: first,
    warmup_ms: warmup,
    stable: stable(warmup, job.least_warmup),
    samples_ms: samples,
    decoder_ms: [],
    image_ms: [],
  };
  const { decoder } = programs,
    last = bundle.golden.trajectories[0].last;
  for (let k = 0; decoder && k <= Math.max(job.images, 1); k++) {
    const took = await timed(() => decoder.call(last));
    if (k > 0) found.decoder_ms.push(took);
  }
  for (let k = 0; k < job.images; k++) {
    found.image_ms.push(await timed(() => drawImage(bundle, programs, BigInt(k))));
    await on.image(k + 1);
  }
  found.sustained = await sustain(call, job.minutes, on.moment);
  return found;
}

// A whole image: noise, every step, the decoder.
export async function drawImage({ plan, golden }, { denoisers, decoder }, image) {
  const size = golden.sample.reduce((product, side) => product * side, 1),
    loop = new Loop(plan, golden.seed, image, size);
  const [{ features }] = golden.trajectories;
  for (let row = 0; row < plan.rows; row++) loop.advance(await denoisers[plan.program[row]].call(loop.x, features[row]));
  return decoder ? decoder.call(loop.x) : loop.x;
}

async function sustain(call, minutes, observe) {
  const moments = [],
    began = performance.now(),
    elapsed = () => performance.now() - began;
  while (elapsed() < 60_000 * minutes) {
    const times = [],
      start = elapsed();
    while (!times.length || elapsed() < start + WINDOW_MS) times.push(await call());
    moments.push({
      seconds: elapsed() / 1000,
      calls: times.length,
      p50_ms: percentile(times, 50),
      p90_ms: percentile(times, 90),
    });
    await observe(moments.at(-1));
  }
  return moments;
}
