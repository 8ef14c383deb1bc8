// The page: what can be run, how far it is, what came out. The job itself runs in worker.mjs.

import { findAdapter } from "./runtime.mjs";
import { Reporter } from "./server.mjs";
import { $, View } from "./view.mjs";

let worker = null,
  view = null;

async function main() {
  const setup = await (await fetch("setup.json", { cache: "no-store" })).json();
  $("name").textContent = setup.name;
  document.title = `${setup.name} · edge-sd`;
  if (setup.mode === "about") {
    await new Reporter(setup.reports, document.baseURI).post("about", JSON.stringify(await about()), "application/json");
    $("doing").textContent = "This browser has said what it is.";
  } else if (setup.mode === "job") {
    start(setup, setup.job, setup.backend);
  } else {
    await offer(setup);
  }
}

// What this browser is, for a device's fingerprint.
async function about() {
  const known = (await navigator.userAgentData?.getHighEntropyValues?.(["fullVersionList"]))?.fullVersionList ?? [];
  const brand = known.find(({ brand: name }) => !/not.*brand/i.test(name));
  return {
    browser: brand ? `${brand.brand} ${brand.version}` : navigator.userAgent,
    isolated: Boolean(globalThis.crossOriginIsolated),
    adapter: await findAdapter(),
  };
}

// Let a person choose.
async function offer(setup) {
  $("controls").hidden = false;
  $("doing").textContent = "Ready.";
  const adapter = await findAdapter().catch(() => null),
    graphics = document.querySelector("[value=webgpu]"),
    limits = [];
  graphics.disabled = !adapter;
  if (!adapter)
    limits.push(isSecureContext ? "This browser shows no graphics processor by WebGPU." : "WebGPU needs a secure context.");
  if (adapter?.software) limits.push(`WebGPU is imitated here (${adapter.name}): right, and slow.`);
  if (!globalThis.crossOriginIsolated)
    limits.push("This page comes unencrypted from another computer: one thread only, and hashes by our own SHA-256.");
  $("limits").textContent = limits.join(" ");
  $("limits").hidden = !limits.length;
  const most = globalThis.crossOriginIsolated ? (navigator.hardwareConcurrency ?? 1) : 1;
  for (let threads = 1; threads <= most; threads++) $("threads").append(new Option(String(threads)));
  $("threads").value = String(Math.min(setup.job.threads, most));
  $("threads").disabled = most === 1;
  const chosen = () => document.querySelector("[name=backend]:checked").value;
  $("controls").addEventListener("change", () => ($("threads").disabled = most === 1 || chosen() === "webgpu"));
  $("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    start(setup, { ...setup.job, threads: Number($("threads").value) }, chosen());
  });
  $("stop").addEventListener("click", () => {
    view.over = true; // what it still had to draw
    finish();
    $("doing").textContent = "Stopped.";
    $("progress").value = 0;
  });
}

function finish() {
  worker?.terminate();
  worker = null;
  $("run").disabled = false;
  $("stop").hidden = true;
}

function start(setup, job, backend) {
  finish();
  $("run").disabled = true;
  $("stop").hidden = false;
  $("doing").textContent = "Starting …";
  $("progress").value = 0;
  for (const id of ["verdict", "pictures", "latency", "trajectory", "saves"]) $(id).hidden = true;
  for (const id of ["samples", "steps", "figures", "chart", "runtime", "settled"]) $(id).replaceChildren();
  view = new View(setup, finish);
  worker = new Worker(new URL("worker.mjs", import.meta.url), { type: "module" });
  worker.onmessage = ({ data: { kind, ...message } }) => view[kind](message);
  worker.onerror = (event) => {
    event.preventDefault();
    const failure = {
      message: `the page's worker cannot run: ${event.message ?? "it does not load"}`,
      hint: "take a current browser",
    };
    view.failure(failure);
    new Reporter(setup.reports, document.baseURI).post("failure", JSON.stringify(failure), "application/json").catch(() => {});
  };
  worker.postMessage({ setup, job, backend });
}

main().catch((error) => {
  $("doing").textContent = `The page cannot begin: ${error.message}`;
  console.error(error);
});
