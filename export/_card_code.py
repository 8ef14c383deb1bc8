"""The part of a card that says how a bundle is run: commands and code for each platform that it has programs for."""

from edge_sd.bundle import Manifest
from edge_sd.diffusion import Plan

_LOADING = """import numpy as np
import onnxruntime
from safetensors.numpy import load_file

plan, golden = load_file("plan.safetensors"), load_file("golden.safetensors")
denoisers = [onnxruntime.InferenceSession(file) for file in {files}]
x = golden["0.samples"][:1]  # another image: {start}standard_normal((1, {shape}))"""
_FEATURES = 'features = plan["features"]'
_TEMPORAL = """temporal = onnxruntime.InferenceSession("{file}")
label = np.array([{label}], np.int32)  # the class
times = plan["timestep"].astype(np.float32)
features = np.concatenate([temporal.run(None, {{"timestep": t[None], "label": label}})[0] for t in times])"""
_LOOP = """base, memory = x, []  # what the solver remembers, newest first
for row in range(len(plan["timestep"])):
    inputs = {"sample": x.astype(np.float32), "time_features": features[row : row + 1]}
    (prediction,) = denoisers[plan["program"][row]].run(None, inputs)
    memory.insert(0, plan["p"][row] * x + plan["q"][row] * prediction)
    base = plan["u"][row] * x + plan["a"][row] * base + sum(b * m for b, m in zip(plan["b"][row], memory))
    x = plan["a_next"][row] * base + sum(b * m for b, m in zip(plan["b_next"][row], memory))"""
_NOISE = """
    x = x + plan["c"][row] * np.random.default_rng().standard_normal(x.shape)"""
_PROOF = """
print("largest difference to the reference:", np.abs(x - golden["0.final"]).max())"""
_DECODE = """
(image,) = onnxruntime.InferenceSession("{file}").run(None, {{"latent": x.astype(np.float32)}})  # -1 … 1"""


def how_to_run(manifest: Manifest, plan: Plan) -> str:
    """Markdown: a part for each platform."""
    name = f"{manifest.name}.edgesd"
    targets = {program.target for program in manifest.programs}
    parts = [
        f"### With edge-sd\n\n    edge-sd sample {name} -n 16 -o grid.png\n    edge-sd parity {name}\n    edge-sd bench {name}\n"
    ]
    if "onnx" in targets:
        parts.append(
            "### Python, ONNX Runtime\n\nIn this folder, with numpy, onnxruntime and safetensors:\n\n"
            f"```python\n{onnx_code(manifest, plan)}\n```\n"
        )
        parts.append(
            "### A browser\n\n"
            f"    edge-sd serve {name}\n\n"
            "opens a page that checks every file, draws the golden samples by ONNX Runtime Web, and takes times.\n"
        )
    if "executorch" in targets:
        parts.append(
            "### Android and Linux boards, ExecuTorch\n\n"
            f"    edge-sd parity {name} --device adb:SERIAL\n"
            f"    edge-sd bench {name} --device ssh:USER@BOARD\n\n"
            "bring edge-sd's C++ runner along. In an app: load the method of each program from the `.pte`, and run the loop of "
            "`plan.safetensors` around it; docs/BUNDLE.md and the snippets of edge-sd have it in C++, Kotlin and Swift.\n"
        )
    if "coreml" in targets:
        parts.append(
            "### Apple, Core ML\n\n"
            f"    edge-sd parity {name} --runtime coreml             # on a Mac\n"
            f"    edge-sd parity {name} --runtime coreml-reference   # anywhere: operator by operator, no times\n\n"
            "In an app: add the `.mlpackage`, and run the loop of `plan.safetensors` around its prediction.\n"
        )
    return "\n".join(parts)


def onnx_code(manifest: Manifest, plan: Plan) -> str:
    """Python that draws golden trajectory 0 in ONNX Runtime, from this folder, without edge-sd."""
    files = {program.name: program.file for program in manifest.programs if program.target == "onnx"}
    scale = f"{plan.start_scale:.9g} * " if plan.start_scale != 1 else ""
    parts = [
        _LOADING.format(
            files=[files[name] for name in plan.header.programs],
            start=f"{scale}np.random.default_rng().",
            shape=", ".join(map(str, manifest.sample_shape)),
        ),
        _TEMPORAL.format(file=files["temporal"], label=0) if manifest.labelled else _FEATURES,
        _LOOP + (_NOISE if plan.stochastic else _PROOF),
    ]
    return "\n".join(parts) + (_DECODE.format(file=files["decoder"]) if "decoder" in files else "")
