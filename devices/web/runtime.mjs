// ONNX Runtime Web: its programs, on the processor (wasm) or on the graphics processor (webgpu).

import { Failure, require } from "./failure.mjs";
import { programOf } from "./bundle.mjs";
import { same } from "./safetensors.mjs";

const TYPES = { float32: "float32", float16: "float16", int32: "int32" };
// One matrix product, ONNX: what starts the runtime before anything is timed, and what the machine's ceiling is measured by.
const PRODUCT =
  "CAgSB2VkZ2Utc2Q6YQoRCgFhCgFiEgFjIgZNYXRNdWwSB2NlaWxpbmdaFQoBYRIQCg4IARIKCgMSAW0KAxIBbVoVCgFiEhAKDggBEgoKAxIBbQoDEgFtYhUKAWMSEAoOCAES" +
  "CgoDEgFtCgMSAW1CBAoAEBI=";
const CEILING_SIZE = 768,
  CEILING_CALLS = 12,
  CEILING_MS = 3000;

// What the browser would compute with; null where it shows no adapter.
export async function findAdapter() {
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) return null;
  const { vendor = "", architecture = "", device = "", description = "" } = adapter.info ?? {};
  const name = [vendor, architecture, device, description].filter(Boolean).join(" ") || "without a name";
  const software =
    Boolean(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter) ||
    /swiftshader|llvmpipe|lavapipe|basic render/i.test(name);
  return { name, software };
}

// The smallest step of the clock that times are taken by, in milliseconds.
export function clockStep() {
  let smallest = Infinity;
  for (let seen = 0, last = performance.now(); seen < 20;) {
    const now = performance.now();
    if (now > last) {
      smallest = Math.min(smallest, now - last);
      seen += 1;
    }
    last = now;
  }
  return smallest;
}

export class Runtime {
  // files: of setup.json, by backend; base: what their addresses are relative to.
  static async start({ version, files }, base, backend, threads) {
    require(Object.hasOwn(files, backend), `there is no backend ${backend}`, `one of ${Object.keys(files).join(", ")}`);
    const adapter = backend === "webgpu" ? await findAdapter() : null;
    require(backend !== "webgpu" ||
      adapter, "this browser shows no graphics processor by WebGPU", "take wasm, or a browser and a driver with WebGPU");
    const [module, wasm] = files[backend].map((file) => new URL(file, base).href);
    const ort = await import(module);
    ort.env.logLevel = "error";
    ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? threads : 1;
    ort.env.wasm.wasmPaths = { wasm };
    ort.env.webgpu.powerPreference = "high-performance";
    const runtime = new Runtime(ort, backend, ort.env.wasm.numThreads, adapter);
    const product = Uint8Array.from(atob(PRODUCT), (letter) => letter.charCodeAt(0));
    runtime.product = await runtime.session(product, {}, "its first program");
    const where = backend === "webgpu" ? adapter.name : `${runtime.threads} thread${runtime.threads === 1 ? "" : "s"}`;
    runtime.title = `onnxruntime-web ${version} (${backend}, ${where}, clock ${(1000 * clockStep()).toFixed(0)} µs)`;
    return runtime;
  }

  constructor(ort, backend, threads, adapter) {
    Object.assign(this, { ort, backend, threads, adapter });
  }

  // A program of the bundle, which must keep its contract; null where the bundle has none of that name.
  async load(bundle, name) {
    const program = programOf(bundle.manifest, name);
    if (!program) return null;
    const { file, options, contract } = program;
    const session = await this.session(
      new Uint8Array(bundle.files.get(file)),
      {
        externalData: bundle.weights.map((path) => ({ path, data: new Uint8Array(bundle.files.get(path)) })),
        // As the runtime on a host: integer convolutions on small maps stay as they are.
        ...(options.layout === "nchw" && { extra: { optimization: { disable_specified_optimizers: "NhwcTransformer" } } }),
      },
      file,
    );
    for (const [specs, found] of [
      [contract.inputs, session.inputMetadata],
      [contract.outputs, session.outputMetadata],
    ]) {
      const fits =
        specs.length === found.length &&
        specs.every((spec, i) => {
          return spec.name === found[i].name && TYPES[spec.dtype] === found[i].type && same(spec.shape, found[i].shape);
        });
      require(fits, `${file} is not what its contract says`, "export the bundle again");
    }
    return new Program(this, session, contract);
  }

  async session(bytes, options, name) {
    const providers = this.backend === "webgpu" ? ["webgpu", "wasm"] : ["wasm"];
    try {
      return await this.ort.InferenceSession.create(bytes, {
        executionProviders: providers,
        graphOptimizationLevel: "all",
        ...options,
      });
    } catch (error) {
      throw new Failure(
        `onnxruntime-web (${this.backend}) cannot load ${name}: ${words(error)}`,
        "edge-sd parity shows where the program does run",
      );
    }
  }

  // Most float32 operations a second that a matrix product reaches here, in GFLOP/s, and how it was measured.
  async ceiling() {
    const values = Float32Array.from({ length: CEILING_SIZE ** 2 }, (_, i) => ((i * 7919) % 1024) / 512 - 1);
    const matrix = () => new this.ort.Tensor("float32", values, [CEILING_SIZE, CEILING_SIZE]);
    let best = Infinity;
    for (
      let call = 0, began = performance.now();
      call < CEILING_CALLS && (call < 2 || performance.now() - began < CEILING_MS);
      call++
    ) {
      const start = performance.now();
      await this.product.run({ a: matrix(), b: matrix() });
      best = Math.min(best, performance.now() - start);
    }
    const how = `onnxruntime-web's product of two ${CEILING_SIZE} × ${CEILING_SIZE} float32 matrices, ${this.title}`;
    return [(2 * CEILING_SIZE ** 3) / (best * 1e6), how];
  }
}

export class Program {
  constructor(runtime, session, contract) {
    Object.assign(this, { runtime, session, contract });
  }

  // Typed arrays in the contract's order → the output, a Float32Array of its own. On a graphics processor this waits for it.
  async call(...inputs) {
    const { Tensor } = this.runtime.ort;
    const feeds = Object.fromEntries(
      this.contract.inputs.map((spec, i) => [spec.name, new Tensor(TYPES[spec.dtype], inputs[i], spec.shape)]),
    );
    try {
      const output = (await this.session.run(feeds))[this.contract.outputs[0].name];
      return await output.getData();
    } catch (error) {
      throw new Failure(
        `${this.contract.program} fails on ${this.runtime.title}: ${words(error)}`,
        "edge-sd parity shows where the program does run",
      );
    }
  }
}

// The runtime also throws numbers.
function words(error) {
  return String(error?.message ?? error).slice(0, 2000);
}
