// The job, in a worker: the page stays awake while it runs, and each job has a runtime of its own, whose number of threads is
// read once. It tells the page what it finds, and the server where one waits for it.

import { openBundle } from "./bundle.mjs";
import { Failure } from "./failure.mjs";
import { measure, stepper, timed } from "./measure.mjs";
import { NAME } from "./noise.mjs";
import { prove } from "./prove.mjs";
import { Runtime } from "./runtime.mjs";
import { writeSafetensors } from "./safetensors.mjs";
import { fetchBytes, Reporter } from "./server.mjs";

const BASE = import.meta.url;

self.onmessage = async ({ data: { setup, job, backend } }) => {
  const reporter = new Reporter(setup.reports, BASE);
  const tell = (kind, message = {}) => self.postMessage({ kind, ...message });
  const progress = (stage, done, total) => {
    tell("progress", { stage, done, total });
    return reporter.progress(stage, done, total);
  };
  try {
    const answer = await work(setup, job, backend, tell, progress);
    // The evidence first: the result says that all is there.
    if (answer.evidence) await reporter.post("evidence", answer.evidence, "application/octet-stream");
    await reporter.post(
      "result",
      JSON.stringify({ measurement: answer.measurement, runtime_version: answer.title }),
      "application/json",
    );
    tell("done", answer);
  } catch (error) {
    const known = error instanceof Failure;
    const failure = {
      message: known ? error.message : `the page failed: ${error?.message ?? error}`,
      hint: known ? error.hint : "load the page again",
    };
    if (!known) console.error(error);
    tell("failure", failure);
    await reporter.post("failure", JSON.stringify(failure), "application/json").catch(() => {});
  }
};

async function work(setup, job, backend, tell, progress) {
  await progress("files", 0, 1);
  const bundle = await openBundle(
    (name, most) => fetchBytes(setup.files[name], name, most, BASE),
    setup.digest,
    (done, total) => progress("files", done, total),
  );
  const { plan, golden, manifest } = bundle;
  tell("bundle", {
    timesteps: Array.from(plan.columns.timestep),
    solver: manifest.contracts[0].plan.solver,
    sample: golden.sample,
    image: golden.image,
    files: bundle.files.size + 1, // and the manifest
    bytes: bundle.total,
    references: golden.trajectories.map(({ image, last }) => image ?? last),
  });

  await progress("programs", 0, 1);
  const runtime = await Runtime.start(setup.runtime, BASE, backend, job.threads);
  tell("runtime", { title: runtime.title, threads: runtime.threads, adapter: runtime.adapter });
  const programs = { denoisers: [], decoder: null, temporal: null };
  const loadMs = await timed(async () => {
    for (const name of plan.programs) programs.denoisers.push(await runtime.load(bundle, name));
    programs.decoder = await runtime.load(bundle, "decoder");
  });
  if (programs.denoisers.includes(null) || !programs.decoder !== !golden.image) {
    throw new Failure(`${manifest.name} has not every program for onnx`, "edge-sd export --target onnx");
  }
  if (job.prove) programs.temporal = await runtime.load(bundle, "temporal");
  bundle.files.clear(); // the runtime has copies of its own
  const step = stepper(bundle, programs),
    firstMs = await timed(step);
  tell("loaded", { loadMs, firstMs });
  await progress("programs", 1, 1);

  const answer = { title: runtime.title, evidence: null, measurement: null };
  if (job.prove) answer.evidence = await proveAll(bundle, programs, runtime, tell, progress);
  if (job.iterations > 0) {
    const times = await measure(bundle, programs, job, step, firstMs, {
      warmup: (calls) => progress("warm-up", calls.length, job.most_warmup),
      sample: (calls) => progress("timing", calls.length, job.iterations),
      image: (done) => progress("images", done, job.images),
      moment: ({ seconds }) => progress("sustained", Math.round(seconds), Math.round(60 * job.minutes)),
    });
    await progress("ceiling", 0, 1);
    const [gflops, how] = await runtime.ceiling();
    answer.measurement = {
      schema_version: 1,
      kind: "measurement",
      runtime_version: runtime.title,
      load_ms: loadMs,
      ...times,
      ceiling_gflops: gflops,
      ceiling: how,
    };
  }
  return answer;
}

async function proveAll(bundle, programs, runtime, tell, progress) {
  const { golden, plan, manifest } = bundle,
    total = golden.trajectories.length * plan.rows;
  const tensors = await prove(bundle, programs, {
    step: ({ index, row, forcedDb, freeDb, x }) => {
      tell("step", { index, row, forcedDb, freeDb, x });
      return progress("proof", index * plan.rows + row + 1, total);
    },
    drawn: (found) => tell("drawn", found),
  });
  const header = {
    schema_version: 1,
    kind: "evidence",
    bundle_digest: manifest.digest,
    runtime: "onnxruntime-web",
    runtime_version: runtime.title,
    noise: NAME,
  };
  // The seed may be beyond what JavaScript's numbers hold.
  return writeSafetensors(tensors, `${JSON.stringify(header).slice(0, -1)},"seed":${golden.seed}}`);
}
