// What came out, as a person sees it.

import { chart, paint } from "./draw.mjs";
import { percentile, SAME_DB } from "./metrics.mjs";

export const $ = (id) => document.getElementById(id);
const STAGES = {
  files: "Fetching and checking files",
  programs: "Loading programs",
  proof: "Following the reference’s trajectories",
  "warm-up": "Warming up",
  timing: "Timing calls",
  images: "Timing whole images",
  sustained: "Calling without a pause, seconds",
  ceiling: "Measuring what this machine can do",
};
const GOOD_DB = 60,
  FAIR_DB = 20,
  MOST_SHOWN_DB = 140;
const urls = []; // of the files that are offered

// One method for each kind of message from the worker.
export class View {
  // setup: see setup.json; finish: called when the worker has nothing more to say.
  constructor(setup, finish) {
    Object.assign(this, { setup, finish });
    this.worst = []; // by row: [forced, free] decibels
    this.last = SAME_DB;
    this.image = null;
    this.figures = { load: null, first: null };
  }

  end() {
    this.over = true;
    this.finish();
  }

  progress({ stage, done, total }) {
    this.latest = { stage, done, total };
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      if (this.over) return;
      const { stage: now, done: sofar, total: all } = this.latest;
      const count = now === "files" ? "" : all > 1 ? ` ${sofar} of ${now === "warm-up" ? "at most " : ""}${all}` : "";
      $("doing").textContent = `${STAGES[now] ?? now}${count} …`;
      $("progress").value = all > 0 ? Math.min(1, sofar / all) : 0;
    });
  }

  bundle(facts) {
    Object.assign(this, { facts, shape: facts.image ?? facts.sample });
    const { sample, image, files, bytes } = facts,
      size = `${sample[2]} × ${sample[1]}`;
    const drawn = image ? `${image[2]} × ${image[1]} images from ${sample[0]} × ${size} latents` : `${size} images`;
    const many = `${facts.timesteps.length} steps of ${facts.solver}`;
    $("facts").textContent = `${drawn} · ${many} · ${files} files, ${(bytes / 2 ** 20).toFixed(1)} MiB, every SHA-256 checked`;
    this.canvases = facts.references.map((reference) => {
      const pair = made("div", "pair"),
        [theirs, ours] = ["Reference", "This browser"].map((caption) => {
          const figure = made("figure"),
            canvas = made("canvas");
          canvas.setAttribute("role", "img");
          canvas.setAttribute("aria-label", caption);
          figure.append(canvas, made("figcaption", "", caption));
          pair.append(figure);
          return canvas;
        });
      paint(theirs, reference, this.shape);
      const note = made("p", "", " ");
      pair.append(note);
      $("samples").append(pair);
      return { canvas: ours, note };
    });
  }

  runtime({ title, adapter }) {
    $("runtime").textContent =
      title + (adapter?.software ? ": imitated, its times say nothing of a real graphics processor" : "");
  }

  loaded({ loadMs, firstMs }) {
    this.figures = { load: loadMs, first: firstMs };
  }

  step({ index, row, forcedDb, freeDb, x }) {
    $("pictures").hidden = $("trajectory").hidden = false;
    const known = this.worst[row] ?? [SAME_DB, SAME_DB];
    this.worst[row] = [Math.min(known[0], forcedDb), Math.min(known[1], freeDb)];
    const cells = [String(row + 1), time(this.facts.timesteps[row]), ...this.worst[row].map(bar)].map((content) => {
      const cell = made("td");
      cell.append(content);
      return cell;
    });
    const line = made("tr");
    line.append(...cells);
    const there = $("steps").children[row];
    if (there) there.replaceWith(line);
    else $("steps").append(line);
    paint(this.canvases[index].canvas, x, this.facts.sample);
    this.canvases[index].note.textContent = `step ${row + 1} of ${this.facts.timesteps.length}`;
  }

  drawn({ index, image, lastDb, imageDb }) {
    this.last = Math.min(this.last, lastDb);
    if (imageDb !== null) this.image = Math.min(this.image ?? SAME_DB, imageDb);
    paint(this.canvases[index].canvas, image, this.shape);
    this.canvases[index].note.textContent =
      `${decibels(lastDb)} at the end${imageDb === null ? "" : `, decoder ${decibels(imageDb)}`}`;
  }

  done({ title, measurement, evidence }) {
    this.end();
    $("doing").textContent = "Done.";
    $("progress").value = 1;
    const forced = Math.min(SAME_DB, ...this.worst.map(([db]) => db)),
      free = Math.min(this.last, ...this.worst.map(([, db]) => db));
    const least = Math.min(forced, free, this.image ?? SAME_DB),
      took = measurement ? this.times(measurement) : "";
    const level = !this.worst.length ? "" : least >= GOOD_DB ? "good" : least >= FAIR_DB ? "fair" : "bad";
    const words = {
      good: "This browser draws what the reference draws.",
      fair: "This browser draws nearly what the reference draws, as quantized programs do.",
      bad: "This browser does not draw what the reference draws.",
      "": "The bundle runs in this browser.",
    };
    $("verdict").className = level;
    $("sentence").textContent = `${words[level]} ${took}`;
    const decoder = this.image === null ? "" : `, the decoder ${decibels(this.image)}`;
    const found = `The worst prediction is ${decibels(forced)} from the reference, the worst sample on its own path ${decibels(free)}${decoder}.`;
    $("detail").textContent = this.worst.length ? `${found} What can be expected of this model, edge-sd parity measures.` : "";
    $("verdict").hidden = false;
    if (this.setup.mode === "page") this.offerSaves({ title, measurement }, evidence);
  }

  times(measurement) {
    const { samples_ms: samples, image_ms: images, decoder_ms: decoders } = measurement;
    const median = percentile(samples, 50);
    const figures = [
      ["load", this.figures.load],
      ["first call", this.figures.first],
      ["p50", median],
      ["p90", percentile(samples, 90)],
      ["p99", percentile(samples, 99)],
      ["decoder", decoders.length ? percentile(decoders, 50) : null],
      ["whole image", images.length ? percentile(images, 50) : null],
    ];
    for (const [name, value] of figures)
      if (value !== null) $("figures").append(made("dt", "", name), made("dd", "", milliseconds(value)));
    pairUp($("figures"));
    $("chart").append(chart(samples));
    const before = `${samples.length} calls after ${measurement.warmup_ms.length} to warm up`;
    const state = measurement.stable
      ? "the last of which agreed within 5 %"
      : "which did not settle within 5 %: other work may disturb this machine";
    $("settled").textContent = `One bar a call: ${before}, ${state}.`;
    $("latency").hidden = false;
    const whole = images.length ? percentile(images, 50) : median * this.facts.timesteps.length;
    return `A picture takes ${milliseconds(whole)}, one of its ${this.facts.timesteps.length} steps ${milliseconds(median)}.`;
  }

  offerSaves(result, evidence) {
    for (const url of urls.splice(0)) URL.revokeObjectURL(url);
    $("saves").replaceChildren();
    const files = [["result.json", JSON.stringify(result, null, 2), "Save the result"]];
    if (evidence) files.push(["evidence.safetensors", evidence, "Save the evidence"]);
    for (const [name, content, words] of files) {
      const link = made("a", "", words);
      urls.push((link.href = URL.createObjectURL(new Blob([content]))));
      link.download = name;
      $("saves").append(link);
    }
    $("saves").hidden = false;
  }

  failure({ message, hint }) {
    this.end();
    $("doing").textContent = "It failed.";
    $("verdict").className = "bad";
    $("sentence").textContent = message;
    $("detail").textContent = `Try: ${hint}`;
    $("verdict").hidden = false;
  }
}

// A name and its value are one cell of the grid.
function pairUp(list) {
  for (const name of list.querySelectorAll("dt")) {
    const cell = made("div"),
      value = name.nextElementSibling;
    name.replaceWith(cell);
    cell.append(name, value);
  }
}

function bar(db) {
  const cell = document.createDocumentFragment(),
    frame = made("span", "bar"),
    filled = made("span");
  filled.style.width = `${Math.max(0, Math.min(100, (100 * db) / MOST_SHOWN_DB))}%`;
  frame.append(filled);
  cell.append(frame, made("span", "value", decibels(db)));
  return cell;
}

function made(name, className = "", text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

function decibels(value) {
  return value >= SAME_DB ? "equal" : `${value.toFixed(0)} dB`;
}

function milliseconds(value) {
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  return value >= 1000
    ? `${(value / 1000).toFixed(2)} s`
    : value >= 100
      ? `${value.toFixed(0)} ms`
      : `${value.toPrecision(3)} ms`;
}

function time(value) {
  return Number.isInteger(value) ? String(value) : value.toFixed(1);
}
