"""Draw a bundle's golden image with NumPy and ONNX Runtime: python loop.py NAME.edgesd [INDEX [OUT]].

The loop is `sample`; the rest reads files and makes the noise, as docs/BUNDLE.md and docs/PLANS.md say. OUT gets the image's
float32 values, (C, H, W), little-endian.
"""

import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import onnxruntime

DTYPES = {"F64": "<f8", "F32": "<f4", "I64": "<i8"}


def sample(plan, programs, rows, noise):
    x = base = np.float32(plan.get("start", [1.0])[0]) * noise(-1)
    memory = []  # newest first
    for i in range(len(rows)):
        e = programs[plan["program"][i]](x, rows[i : i + 1])
        p, q, u, a, a_next, c = (np.float32(plan[name][i]) for name in ("p", "q", "u", "a", "a_next", "c"))
        memory = [p * x + q * e, *memory][: plan["b"].shape[1]]
        base = u * x + a * base
        for weight, m in zip(plan["b"][i], memory, strict=False):
            base = base + np.float32(weight) * m
        x = a_next * base
        for weight, m in zip(plan["b_next"][i], memory, strict=False):
            x = x + np.float32(weight) * m
        x = x + c * noise(i) if c else x
    return x


def read(folder, manifest, name):
    """The bytes of one of the bundle's files, as they were exported."""
    data = (folder / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest["files"][name]["sha256"]:
        raise ValueError(f"{name} has changed")
    return data


def expect_version(header, known):
    if header["schema_version"] != known:
        raise ValueError(f"schema version {header['schema_version']}, this reads {known}")


def safetensors(data, version):
    """A safetensors file: the header that edge-sd keeps in its metadata, and the tensors by name."""
    size = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + size])
    header = json.loads(entries.pop("__metadata__")["edge_sd"])
    expect_version(header, version)
    tensors = {}
    for name, entry in entries.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return header, tensors


def program(folder, manifest, name):
    """An ONNX program as a function of its inputs, in the contract's order; None where the bundle has none of that name."""
    found = [one for one in manifest["programs"] if (one["target"], one["name"]) == ("onnx", name)]
    if not found:
        return None
    read(folder, manifest, found[0]["file"])
    slower = ["NhwcTransformer"] if found[0]["options"].get("layout") == "nchw" else None
    session = onnxruntime.InferenceSession(
        str(folder / found[0]["file"]), providers=["CPUExecutionProvider"], disabled_optimizers=slower
    )
    names = [one.name for one in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))[0]


def gaussian(seed, index, row, shape):
    """Philox-4×32-10 and Box–Muller, to the bit what the golden trajectories start from."""
    count, low = math.prod(shape), 0xFFFFFFFF
    block = np.arange(-(-count // 4), dtype=np.uint64)
    c0, c1, c2, c3 = block, *(np.full_like(block, value) for value in (row + 1, index & low, index >> 32))
    k0, k1 = seed & low, seed >> 32
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ np.uint64(k0), p1 & low, (p0 >> 32) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    values = np.stack([*box_muller(c0, c1), *box_muller(c2, c3)], axis=-1)
    return values.reshape(-1)[:count].reshape(shape)


def box_muller(w0, w1):
    m, e = np.frexp((2 * w0 + 1).astype(np.float64) * 2.0**-33)
    m, e = np.where(m < 0.7071067811865476, 2 * m, m), np.where(m < 0.7071067811865476, e - 1, e)
    s = (m - 1) / (m + 1)
    ln = e * 0.6931471805599453 + 2 * s * horner(s * s, [1 / (2 * k + 1) for k in range(11)])
    half_pi = 1.5707963267948966
    t = ((w1 & 0x3FFFFFFF).astype(np.float64) + 0.5) * 2.0**-30 * half_pi - half_pi / 2
    sin = t * horner(t * t, [(-1) ** k / math.factorial(2 * k + 1) for k in range(9)])
    cos = horner(t * t, [(-1) ** k / math.factorial(2 * k) for k in range(10)])
    turn, radius = w1 >> 30, np.sqrt(-2 * ln)
    x, y = np.where(turn & 1, sin, cos), np.where(turn & 1, cos, sin)
    x, y = np.where((turn == 1) | (turn == 2), -x, x), np.where(turn >= 2, -y, y)
    return (radius * x).astype(np.float32), (radius * y).astype(np.float32)


def horner(x, coefficients):
    total = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def main(path, index="0", out=""):
    folder, index = Path(path), int(index)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    expect_version(manifest, 3)
    header, plan = safetensors(read(folder, manifest, "plan.safetensors"), 1)
    golden_header, golden = safetensors(read(folder, manifest, "golden.safetensors"), 2)
    programs = [program(folder, manifest, name) for name in header["programs"]]
    temporal, decoder = program(folder, manifest, "temporal"), program(folder, manifest, "decoder")
    shape = (1, *golden["0.final"].shape)

    if golden_header["labels"]:
        label = np.array([golden_header["labels"][index]], np.int32)
        rows = np.concatenate([temporal(np.array([time], np.float32), label) for time in plan["timestep"]])
    else:
        rows = plan["features"]
    image = sample(plan, programs, rows, lambda row: gaussian(golden_header["seed"], index, row, shape))
    image = decoder(image)[0] if decoder else image[0]

    golden_image = golden[f"{index}.image" if decoder else f"{index}.final"]
    error = image.astype(np.float64) - golden_image
    snr = 10 * math.log10((golden_image.astype(np.float64) ** 2).sum() / max((error**2).sum(), 1e-300))
    print(f"image {index}, {'×'.join(map(str, image.shape))}: {snr:.1f} dB, largest difference {abs(error).max():.1e}")
    if out:
        Path(out).write_bytes(image.astype("<f4").tobytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
