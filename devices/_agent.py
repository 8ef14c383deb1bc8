"""A job on a board that has Python, NumPy and ONNX Runtime, and nothing of ours: `python3 agent.pyz prove|measure`.

It is packed, with the few files of ours that need NumPy alone, by `_staging.py`; it stands in a job's folder, reads job.json
there, and writes evidence.safetensors or result.json. It ends when its standard input does: then nobody waits any more.
"""

import json
import os
import struct
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

JOB, RESULT, EVIDENCE = "job.json", "result.json", "evidence.safetensors"
_DTYPES = {"F32": "<f4", "F64": "<f8", "I64": "<i8"}


def main(mode: str) -> None:
    """Do one half of the job in the current folder."""
    threading.Thread(target=end_with_input, daemon=True).start()
    with open(JOB, encoding="utf-8") as file:  # noqa: PTH123 (pathlib costs a slow board more than it says)
        job = json.load(file)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before NumPy is imported
        os.environ[name] = str(job["threads"])
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    work = Work(job)
    if mode == "prove":
        header = {**job["header"], "runtime_version": work.version}
        write_tensors(EVIDENCE, work.prove(), {"edge_sd": json.dumps(header)})
    else:
        _write(RESULT, json.dumps(work.measure()).encode())


class Work:
    """A job's files, opened; see `_staging.Description` for what job.json holds."""

    def __init__(self, job: dict[str, Any]) -> None:
        import numpy as np
        import onnxruntime

        from edge_sd.devices import _measuring

        self.version = f"onnxruntime {onnxruntime.__version__}, Python {sys.version.split()[0]}, NumPy {np.__version__}"
        self._job, self._base = job, _measuring.memory("VmRSS")
        columns = read_tensors("plan.safetensors")
        self._rows = len(columns["timestep"])
        self._plan = _Plan(columns, job["history"])
        self._golden = read_tensors("golden.safetensors")
        self._count = len({name.partition(".")[0] for name in self._golden})
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job["threads"]
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")

        def load(program: dict[str, Any] | None) -> Any:
            if program is None:
                return None
            disabled = ["NhwcTransformer"] if program["nchw"] else None
            session = onnxruntime.InferenceSession(
                program["file"], options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
            )
            names = [value.name for value in session.get_inputs()]
            return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))[0]

        began = time.perf_counter()
        self._denoisers = [load(program) for program in job["programs"]]
        self._decoder = load(job["decoder"])
        self._load_ms = (time.perf_counter() - began) * 1e3
        self._temporal = load(job["temporal"])

    def prove(self) -> dict[str, Any]:
        """Evidence's tensors, see `edge_sd.runtimes.evidence`."""
        import numpy as np

        found: dict[str, Any] = {}
        total, done = 2 * self._rows * self._count, 0

        def heard(prediction: Any) -> Any:
            nonlocal done
            done += 1
            say(done, total)
            return prediction

        for index in range(self._count):
            samples, features, final = (self._golden[f"{index}.{name}"] for name in ("samples", "features", "final"))
            found[f"{index}.forced"] = np.stack([heard(self._step(index, row)) for row in range(self._rows)])
            free, _, last = self._draw(index, features, samples.shape[1:], heard)
            found |= {f"{index}.free": np.stack(free), f"{index}.last": last}
            if self._decoder is not None:
                found |= {f"{index}.image": self._decoder(final[None])[0], f"{index}.drawn": self._decoder(last[None])[0]}
            if self._temporal is not None:
                label = [np.array([self._job["labels"][index]], dtype=np.int32)] if self._job["labels"] else []
                times = self._plan.timestep.astype(np.float32)[:, None]
                found[f"{index}.features"] = np.concatenate([self._temporal(when, *label) for when in times])
        return found

    def measure(self) -> dict[str, Any]:
        """A `Measurement`'s fields."""
        from edge_sd.devices import _measuring

        last, shape = self._golden["0.final"][None], self._golden["0.samples"].shape[1:]

        def image() -> None:
            drawn = self._draw(0, self._golden["0.features"], shape)[2]
            if self._decoder is not None:
                self._decoder(drawn[None])

        decode = None if self._decoder is None else lambda: self._decoder(last)
        calls = _measuring.Calls(lambda row: self._step(0, row), decode, image)
        found = _measuring.measure(calls, self._rows, _measuring.Limits(**self._job["limits"]), self._job["threads"], say)
        return {
            "schema_version": 1, "kind": "measurement", "runtime_version": self.version, "load_ms": self._load_ms, **found,
            "base_memory_bytes": self._base,
        }  # fmt: skip

    def _step(self, index: int, row: int) -> Any:
        sample, features = self._golden[f"{index}.samples"], self._golden[f"{index}.features"]
        return self._call(sample[row : row + 1], features, row)[0]

    def _call(self, x: Any, features: Any, row: int) -> Any:
        return self._denoisers[int(self._plan.program[row])](x, features[row : row + 1])

    def _draw(
        self, index: int, features: Any, shape: tuple[int, ...], heard: Callable[[Any], Any] = lambda prediction: prediction
    ) -> tuple[list[Any], list[Any], Any]:
        from edge_sd.diffusion.execute import trace

        return trace(self._plan, lambda x, row: heard(self._call(x, features, row)), self._job["seed"], index, shape)


class _Plan(SimpleNamespace):
    """What `execute` reads of a plan: its columns, by name too, its length, and how far it looks back."""

    def __init__(self, columns: dict[str, Any], history: int) -> None:
        super().__init__(columns=columns, header=SimpleNamespace(history=history), **columns)

    def __len__(self) -> int:
        return len(self.columns["timestep"])


def read_tensors(path: str) -> dict[str, Any]:
    """A safetensors file of ours (its hash was compared after the copy)."""
    import numpy as np

    with open(path, "rb") as file:  # noqa: PTH123
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    found = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            begin, end = tensor["data_offsets"]
            values = np.frombuffer(data[begin:end], _DTYPES[tensor["dtype"]])
            found[name] = values.reshape(tensor["shape"]).astype(values.dtype.newbyteorder("="))
    return found


def write_tensors(path: str, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    """Write float32 tensors as safetensors."""
    import numpy as np

    header: dict[str, Any] = {"__metadata__": metadata}
    blocks, at = [], 0
    for name, value in tensors.items():
        block = np.ascontiguousarray(value, dtype="<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [at, at + len(block)]}
        blocks.append(block)
        at += len(block)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    _write(path, struct.pack("<Q", len(text)) + text + b"".join(blocks))


def _write(path: str, data: bytes) -> None:
    with open(f"{path}.part", "wb") as file:  # noqa: PTH123
        file.write(data)
    os.replace(f"{path}.part", path)  # noqa: PTH105


def say(done: int, total: int) -> None:
    """A line that tells whoever waits how far it is."""
    print(f"step {done} of {total}", file=sys.stderr, flush=True)


def end_with_input() -> None:
    """End this process when its standard input does: nobody waits any more."""
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
