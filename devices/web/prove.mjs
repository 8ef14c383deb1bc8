// The proof: a bundle's golden trajectories followed twice, fed the reference's samples and on its own, and what came out, kept.
// As edge_sd/runtimes/evidence.py and the C++ runner do it.

import { require } from "./failure.mjs";
import { Loop } from "./loop.mjs";
import { snrDb } from "./metrics.mjs";

// programs: { denoisers: one of each name of the plan, temporal, decoder: Program or null }
// on: { step({ index, row, forcedDb, freeDb, x }), drawn({ index, image, lastDb, imageDb }) }
// → tensors of evidence.safetensors: [name, shape, Float32Array] each
export async function prove({ plan, golden }, programs, on) {
  const tensors = [],
    size = golden.sample.reduce((product, side) => product * side, 1);
  for (const [index, trajectory] of golden.trajectories.entries()) {
    const loop = new Loop(plan, golden.seed, BigInt(index), size),
      forced = [],
      free = [];
    for (let row = 0; row < plan.rows; row++) {
      const denoiser = programs.denoisers[plan.program[row]],
        features = trajectory.features[row];
      const told = finite(await denoiser.call(trajectory.samples[row], features), denoiser, `at step ${row}`);
      forced.push(told);
      free.push(loop.x);
      const freeDb = snrDb(trajectory.samples[row], loop.x);
      loop.advance(finite(await denoiser.call(loop.x, features), denoiser, `at step ${row}`));
      await on.step({ index, row, forcedDb: snrDb(trajectory.predictions[row], told), freeDb, x: loop.x });
    }
    const steps = [plan.rows, ...golden.sample];
    tensors.push(
      [`${index}.forced`, steps, joined(forced)],
      [`${index}.free`, steps, joined(free)],
      [`${index}.last`, golden.sample, loop.x],
    );
    const lastDb = snrDb(trajectory.last, loop.x),
      where = `of trajectory ${index}`;
    if (programs.temporal) {
      const label = golden.labels.length ? [Int32Array.of(golden.labels[index])] : [],
        rows = [];
      for (const time of plan.columns.timestep) {
        rows.push(finite(await programs.temporal.call(Float32Array.of(time), ...label), programs.temporal, where));
      }
      tensors.push([`${index}.features`, [plan.rows, golden.width], joined(rows)]);
    }
    if (!programs.decoder) {
      on.drawn({ index, image: loop.x, lastDb, imageDb: null });
      continue;
    }
    // The reference's last sample, which is compared, and our own, which is a picture.
    const image = finite(await programs.decoder.call(trajectory.last), programs.decoder, where);
    const drawn = finite(await programs.decoder.call(loop.x), programs.decoder, where);
    tensors.push([`${index}.image`, golden.image, image], [`${index}.drawn`, golden.image, drawn]);
    on.drawn({ index, image: drawn, lastDb, imageDb: snrDb(trajectory.image, image) });
  }
  return tensors;
}

function finite(values, program, where) {
  require(values.every(
    Number.isFinite,
  ), `the output of ${program.contract.program} ${where} is not finite`, "edge-sd parity shows where the program does run");
  return values;
}

function joined(arrays) {
  const whole = new Float32Array(arrays.reduce((sum, array) => sum + array.length, 0));
  let at = 0;
  for (const array of arrays) {
    whole.set(array, at);
    at += array.length;
  }
  return whole;
}
