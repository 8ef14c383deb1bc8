// Talking to the server that served the page, and to nobody else: addresses are relative to the page's own.

import { Failure } from "./failure.mjs";

const PAUSE_MS = 1000; // between two reports of progress: they must not disturb what is timed

// A file of at most so many bytes → ArrayBuffer
export async function fetchBytes(address, name, most, base) {
  if (typeof address !== "string")
    throw new Failure(`${name} is not among the files that are served`, "copy or export the bundle again");
  let response, bytes;
  try {
    response = await fetch(new URL(address, base), { cache: "no-store" });
    bytes = response.ok ? await response.arrayBuffer() : null;
  } catch (error) {
    throw new Failure(`${name} cannot be fetched: ${error.message}`, "does edge-sd serve still run?");
  }
  if (!bytes)
    throw new Failure(`${name} cannot be fetched: the server answers ${response.status}`, "copy or export the bundle again");
  if (bytes.byteLength > most)
    throw new Failure(
      `${name} has changed since it was exported (it is ${bytes.byteLength} bytes long)`,
      "copy or export the bundle again",
    );
  return bytes;
}

export class Reporter {
  // names: of what the server waits for.
  constructor(names, base) {
    Object.assign(this, { names, base, last: -Infinity, stage: "" });
  }

  // Tell how far it is: now and then, and where something new begins or ends.
  async progress(stage, done, total) {
    const now = performance.now();
    if (stage === this.stage && done !== total && now - this.last < PAUSE_MS) return;
    Object.assign(this, { last: now, stage });
    // Waited for, so that reports arrive in order. A report that is lost is no harm, the next one may arrive.
    await this.post("progress", JSON.stringify({ stage, done, total }), "application/json").catch(() => {});
  }

  async post(name, body, type) {
    if (!this.names.includes(name)) return;
    const response = await fetch(new URL(name, this.base), { method: "POST", headers: { "Content-Type": type }, body });
    if (!response.ok)
      throw new Failure(`the server does not take ${name}: it answers ${response.status}`, "give the same command again");
  }
}
