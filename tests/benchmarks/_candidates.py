"""What the quantization benchmark compares: each way to quantize, made from one checkpoint."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when it is first imported

import numpy as np
import torch

from edge_sd.bundle.manifest import CARD, GOLDEN, PLAN, REFERENCE
from edge_sd.checkpoint import Checkpoint
from edge_sd.diffusion import Plan
from edge_sd.export import ExportRequest, export_bundle
from edge_sd.files import fingerprint
from edge_sd.models.stepped import select
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize._quantize import calibrate, plan_of, quantize
from edge_sd.quantize.calibration import Calibration, CalibrationRequest
from edge_sd.quantize.checkpoint import AnyCheckpoint, QuantizedCheckpoint, load_quantized
from edge_sd.quantize.nncf import INPUTS, calibration_feeds, nncf_quantize
from edge_sd.quantize.recipe import ActivationBits, Recipe, default_layers
from edge_sd.quantize.reconstruction import ReconstructionSettings
from edge_sd.quiet import quiet
from edge_sd.sampling import plan_features
from edge_sd.validation import Record

SETTINGS: dict[str, tuple[int, ActivationBits]] = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A16": (4, 16)}
FLOAT, FOREIGN, OURS = (
    "full precision",
    ("nncf", "nncf minmax", "quantize_static"),
    ("nearest", "q-diffusion", "ours G=1", "ours"),
)
STEPS = 20
Program = Callable[[torch.Tensor, int], torch.Tensor]  # x (B, C, H, W), row of the plan → prediction


class Settings(Record):
    """What a run was asked for; None is the library's default."""

    checkpoint: str
    settings: tuple[str, ...]
    images: int
    kid_images: int
    iterations: int | None
    trajectories: int | None
    threads: int


@dataclass(frozen=True)
class Candidate:
    """What is measured.

    Attributes:
        program: its denoiser.
        deployed: its exported denoiser, where `program` is its simulation.
        call: one step in ONNX Runtime; None where it could not be exported.
    """

    setting: str
    method: str
    program: Program
    deployed: Program | None
    call: Callable[[], object] | None
    bytes: int | None
    starts: tuple[int, ...] = ()
    checkpoint_bytes: int | None = None
    note: str = ""


# Programs


def torch_program(model: SpectralUNet, plan: Plan) -> Program:
    """A model in torch."""
    rows = torch.from_numpy(plan_features(model, plan))

    def call(x: torch.Tensor, row: int) -> torch.Tensor:
        select(model, int(plan.program[row]))
        with torch.inference_mode():
            return model.denoise(x, rows[row].expand(len(x), -1))

    return call


def onnx_program(files: list[Path], plan: Plan, features: np.ndarray, threads: int) -> tuple[Program, Callable[[], object]]:
    """Files of a plan's programs in ONNX Runtime, one image at a time; and one call of the first."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    sessions = [onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]) for file in files]

    def call(x: torch.Tensor, row: int) -> torch.Tensor:
        session, given = sessions[int(plan.program[row])], features[row][None]
        return torch.cat(
            [torch.from_numpy(session.run(None, {"sample": image[None].numpy(), "time_features": given})[0]) for image in x]
        )

    shape = sessions[0].get_inputs()[0].shape
    feed = {"sample": np.random.default_rng(0).standard_normal(shape, np.float32), "time_features": features[0][None]}
    return call, lambda: sessions[0].run(None, feed)


def exported(checkpoint: AnyCheckpoint, folder: Path) -> tuple[list[Path], int]:
    """The ONNX denoiser of each program, and their bytes with the weights they share."""
    bundle = export_bundle(checkpoint, folder / "bundle.edgesd", ExportRequest(("onnx",), steps=STEPS, goldens=1), overwrite=True)
    files = [bundle.path / bundle.program("onnx", name).file for name in bundle.plan.header.programs]
    of_others = (CARD, GOLDEN, PLAN, REFERENCE)
    return files, sum(entry.bytes for name, entry in bundle.manifest.files.items() if name not in of_others)


# Candidates


def recipe_of(parent: Checkpoint, method: str, setting: str, asked: Settings) -> Recipe:
    """The recipe of one of `OURS`."""
    (bits, activations), model = SETTINGS[setting], parent.header.model
    request = CalibrationRequest() if asked.trajectories is None else CalibrationRequest(trajectories=asked.trajectories)
    learning = ReconstructionSettings() if asked.iterations is None else ReconstructionSettings(iterations=asked.iterations)
    recipe = Recipe(
        model=model,
        steps=STEPS,
        layers=default_layers(model, bits, activations),
        groups=0 if method == "ours" else 1,
        calibration=request,
        reconstruction=learning,
    )
    if method == "nearest":
        layers = default_layers(model, bits, activations, scales="minmax")
        changes = {"layers": layers, "ranges": "minmax", "reconstruction": learning.model_copy(update={"iterations": 0})}
    elif method == "q-diffusion":
        # As many inputs as ours, of more trajectories.
        uniform = {"coverage": "uniform", "trajectories": request.trajectories * request.interval}
        changes = {
            "ranges": "mse",
            "calibration": request.model_copy(update=uniform),
            "reconstruction": learning.model_copy(update={"float_learning_rate": 0.0}),
        }
    else:
        return recipe
    return recipe.model_copy(update=changes)


def calibration_of(parent: Checkpoint, recipe: Recipe, out: Path) -> Calibration:
    """The inputs that a recipe asks for, captured once."""
    name = fingerprint(recipe.calibration.model_dump(mode="json"))[:8]
    return calibrate(parent, recipe, out / f"calibration-{name}.safetensors", progress)


def quantized(parent: Checkpoint, recipe: Recipe, folder: Path) -> QuantizedCheckpoint:
    """The checkpoint that lies in the folder, where it is of this recipe; else a new one."""
    path, calibration = folder / "model.safetensors", calibration_of(parent, recipe, folder.parent)
    if path.exists():
        found = load_quantized(path)
        same = found.header.recipe.model_copy(update={"starts": ()}) == recipe
        if same and found.header.calibration == calibration.header.digest:
            return found
    made = quantize(parent, recipe, calibration, folder / "blocks", progress).checkpoint
    made.save(path)
    return made


def static(onnx_file: Path, calibration: Calibration, out_file: Path) -> None:
    """ONNX Runtime's own post-training quantization, with the preparation that it asks for."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    feeds: Iterator[dict[str, np.ndarray]] = iter(calibration_feeds(calibration, INPUTS))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            return next(feeds, None)

    prepared = out_file.with_name("prepared.onnx")
    with quiet():
        quant_pre_process(onnx_file, prepared, skip_symbolic_shape=True)  # all shapes are fixed
        quantize_static(
            prepared, out_file, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip


def candidates(parent: Checkpoint, asked: Settings, out: Path) -> Iterator[Candidate]:
    """Every row's model, made when its turn comes; full precision first."""
    plain = recipe_of(parent, "ours G=1", "W8A8", asked)
    plan, model = plan_of(parent, plain), parent.build()
    features = plan_features(model, plan)
    (original,), size = exported(parent, out / "float")
    program, call = onnx_program([original], plan, features, asked.threads)
    yield Candidate("–", FLOAT, program, None, call, size, note="ONNX Runtime")
    for setting in asked.settings:
        for method in ("nearest", *FOREIGN, *OURS[1:]) if setting == "W8A8" else OURS:
            say(f"{setting} {method}")
            folder = out / f"{setting}-{method}".replace(" ", "-").replace("=", "")
            folder.mkdir(exist_ok=True)
            if method in FOREIGN:
                file, calibration = folder / "denoiser.onnx", calibration_of(parent, plain, out)
                if method == "quantize_static":
                    static(original, calibration, file)
                else:
                    nncf_quantize(original, calibration, file, ranges="minmax" if method == "nncf minmax" else "mean")
                program, call = onnx_program([file], plan, features, asked.threads)
                note = f"ONNX Runtime; {INPUTS} inputs; it has no 4-bit convolutions: W8A8 alone"
                yield Candidate(setting, method, program, None, call, file.stat().st_size, note=note)
                continue
            checkpoint = quantized(parent, recipe_of(parent, method, setting, asked), folder)
            starts = checkpoint.header.recipe.starts
            own = plan.with_programs(starts)
            simulated = torch_program(checkpoint.build(), own)
            kept = (folder / "model.safetensors").stat().st_size
            try:
                files, size = exported(checkpoint, folder)
                deployed, call = onnx_program(files, own, features, asked.threads)
                yield Candidate(setting, method, simulated, deployed, call, size, starts, kept)
            except Exception as error:  # an exporter's or a runtime's: the row stands without its columns
                note = f"not exported: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
                yield Candidate(setting, method, simulated, None, None, None, starts, kept, note)


# How far it is


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


_said = [0.0]


def progress(stage: str, done: int, total: int, note: str) -> None:
    """The same of a stage, every half minute."""
    if time.monotonic() - _said[0] > 30:
        _said[0] = time.monotonic()
        say(f"  {stage} {done}/{total} {note}")
