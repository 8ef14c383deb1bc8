// Samples on canvases and times as a chart.

import { percentile } from "./metrics.mjs";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 600,
  HEIGHT = 112;
const LATENT_RANGE = 3; // of latents, which are about unit Gaussian, what is shown from black to white

// values: (C, H, W) float32; images lie in [−1, 1]; of latents the first three channels are shown.
export function paint(canvas, values, [channels, height, width]) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"),
    picture = context.createImageData(width, height),
    area = height * width;
  const isImage = channels === 1 || channels === 3,
    range = isImage ? 1 : LATENT_RANGE;
  for (let i = 0; i < area; i++) {
    for (let k = 0; k < 3; k++) {
      const value = values[Math.min(k, channels - 1) * area + i];
      picture.data[4 * i + k] = Math.round(((value / range + 1) / 2) * 255); // clamped by the array itself
    }
    picture.data[4 * i + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
}

// One bar a call in the order of time, and a line at the median; tall ones are cut at four times that.
export function chart(times) {
  const p50 = percentile(times, 50),
    top = Math.min(Math.max(...times), 4 * p50) * 1.05;
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  svg.append(element("title", {}, `Wall time of ${times.length} calls in the order of time; the line is their median.`));
  const step = WIDTH / times.length;
  times.forEach((time, i) => {
    const height = (Math.min(time, top) / top) * HEIGHT;
    svg.append(element("rect", { class: "call", x: i * step, y: HEIGHT - height, width: Math.max(step * 0.8, 0.5), height }));
  });
  const y = HEIGHT - (p50 / top) * HEIGHT;
  svg.append(element("line", { class: "line", x1: 0, x2: WIDTH, y1: y, y2: y }));
  return svg;
}

function element(name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}
