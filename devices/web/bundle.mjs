// Opening a bundle: its manifest, and every file that is run or compared, each checked against its SHA-256.

import { Failure, require } from "./failure.mjs";
import { readGolden, readPlan } from "./plan.mjs";
import { same } from "./safetensors.mjs";
import { sha256 } from "./sha256.mjs";

export const MANIFEST = "manifest.json",
  PLAN = "plan.safetensors",
  GOLDEN = "golden.safetensors";
const CARD = "README.md",
  TARGET = "onnx",
  VERSION = 3;
const AGAIN = "copy or export the bundle again";

// The manifest's digest: of its own text without white space and without the digest, which stands last.
export async function checkManifest(bytes) {
  let text, manifest;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    manifest = JSON.parse(text);
  } catch (error) {
    throw new Failure(`${MANIFEST} is not whole: ${error.message}`, AGAIN);
  }
  require(manifest?.kind === "bundle", `${MANIFEST} is not that of a bundle`, "give a folder that edge-sd export wrote");
  require(manifest.schema_version ===
    VERSION, `${MANIFEST} has schema version ${manifest.schema_version}, this page reads ${VERSION}`, AGAIN);
  const dense = text.replace(/("(?:[^"\\]|\\.)*")|\s+/g, "$1"),
    end = `,"digest":"${manifest.digest}"}`;
  const digest = dense.endsWith(end) ? await sha256(new TextEncoder().encode(`${dense.slice(0, -end.length)}}`).buffer) : "";
  require(digest === manifest.digest, `${MANIFEST} has changed since it was exported`, AGAIN);
  return manifest;
}

// fetchFile: (name, most bytes) → ArrayBuffer; digest: of the bundle that is expected; observe: (bytes so far, bytes in all).
export async function openBundle(fetchFile, digest, observe) {
  const manifest = await checkManifest(await fetchFile(MANIFEST, 2 ** 26));
  require(manifest.digest ===
    digest, `this is another bundle than the one that is served (${manifest.name})`, "load the page again");
  const ours = manifest.programs.filter((program) => program.target === TARGET);
  require(ours.length > 0, `${manifest.name} has no program that a browser runs`, "edge-sd export --target onnx");
  const weights = filesBeside(manifest);
  const names = [...new Set([PLAN, GOLDEN, ...ours.map((program) => program.file), ...weights])];
  const total = names.reduce((sum, name) => sum + (manifest.files[name]?.bytes ?? 0), 0),
    files = new Map();
  let done = 0;
  for (const name of names) {
    const entry = Object.hasOwn(manifest.files, name) ? manifest.files[name] : null;
    require(entry, `${MANIFEST} does not name ${name}`, AGAIN);
    const bytes = await fetchFile(name, entry.bytes);
    if (bytes.byteLength !== entry.bytes || (await sha256(bytes)) !== entry.sha256) {
      throw new Failure(`${name} has changed since it was exported (its SHA-256 differs)`, AGAIN);
    }
    files.set(name, bytes);
    await observe((done += entry.bytes), total);
  }
  const plan = readPlan(files.get(PLAN)),
    golden = readGolden(files.get(GOLDEN), plan.rows);
  const bundle = { manifest, plan, golden, files, weights, total };
  checkShapes(bundle);
  return bundle;
}

export function contractOf(manifest, name) {
  return manifest.contracts.find((contract) => contract.program === name) ?? null;
}

// The ONNX program of that name; null where the bundle has none.
export function programOf(manifest, name) {
  const program = manifest.programs.find((candidate) => candidate.target === TARGET && candidate.name === name);
  const contract = contractOf(manifest, name);
  return program && contract ? { ...program, contract } : null;
}

// Weights that several programs share lie in files that are nobody's program.
function filesBeside({ files, programs }) {
  const owned = (name) => programs.some(({ file }) => name === file || name.startsWith(`${file}/`));
  return Object.keys(files).filter((name) => ![PLAN, GOLDEN, CARD].includes(name) && !owned(name));
}

function checkShapes({ manifest, plan, golden }) {
  for (const name of plan.programs) {
    const contract = contractOf(manifest, name),
      wanted = [
        [1, ...golden.sample],
        [1, golden.width],
      ];
    const fits =
      contract && wanted.every((shape, i) => same(contract.inputs[i].shape, shape)) && same(contract.outputs[0].shape, wanted[0]);
    require(fits, `the goldens are not of the program ${name}: ${wanted.map((shape) => `(${shape.join(", ")})`).join(", ")}`, AGAIN);
  }
  const decoder = contractOf(manifest, "decoder");
  require(!decoder === !golden.image, "the goldens have images and no decoder, or the other way round", AGAIN);
  require(!decoder || same(decoder.outputs[0].shape, [1, ...golden.image]), "the goldens' images are not the decoder's", AGAIN);
}
