"""A checkpoint becomes one of 8 or 4 bits, and a bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sd.api.observer import SILENT, Observer
from edge_sd.pretrained import DEFAULT

if TYPE_CHECKING:
    from edge_sd.models import ModelConfig
    from edge_sd.quantize.recipe import Recipe
    from edge_sd.report.quantization import QuantizationReport


@dataclass(frozen=True)
class Quantization:
    """What `quantize` leaves.

    Attributes:
        folder: with recipe.yaml, model.safetensors, quantize.json and pictures.
        report: quantize.json.
        bundle: exported from it, if targets were asked for.
    """

    folder: Path
    report: "QuantizationReport"
    bundle: Path | None


def quantize(
    checkpoint: str | Path = DEFAULT,
    *,
    bits: int = 4,
    act_bits: str = "8",
    output: str | Path | None = None,
    target: Sequence[str] | None = None,
    recipe: str | Path | None = None,
    layer: Sequence[str] | None = None,
    group: int | None = None,
    budget: str = "",
    engine: str = "edge-sd",
    solver: str = "dpmpp",
    steps: int = 20,
    spacing: str | None = None,
    groups: int = 0,
    ranges: str = "mse",
    coverage: str = "every",
    interval: int = 2,
    trajectories: int = 0,
    calibration: str | Path | None = None,
    iterations: int = 400,
    batch_size: int = 0,
    decoder: str | Path | None = None,
    strict_bits: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    observer: Observer = SILENT,
) -> Quantization:
    """Quantize a checkpoint after training; what `edge-sd quantize` does, with its arguments.

    Args:
        checkpoint: checkpoint, diffusers folder or shipped model.
        output: folder; NAME-w4a8 in the current one if left out. The same call goes on where it was cut off.
        target: of the bundle; onnx if left out, and ["none"] for no bundle.

    Raises:
        UsageError: it is quantized already, arguments do not go together, or the folder holds something else.
        EdgeSDError: a budget cannot be met.
    """
    given = dict(locals())
    from edge_sd.checkpoint import Checkpoint
    from edge_sd.errors import UsageError
    from edge_sd.export import ExportRequest, TargetOptions
    from edge_sd.pipeline.quantizing import QuantizeRequest, Quantizing
    from edge_sd.pretrained import model_path
    from edge_sd.quantize.checkpoint import is_quantized, open_any
    from edge_sd.quantize.recipe import load_recipe

    path = model_path(checkpoint)
    if path.is_file() and is_quantized(path):
        raise UsageError(f"{path} is quantized already", "give the full-precision checkpoint")
    chosen = None if recipe is None else load_recipe(Path(recipe))
    model = open_any(path, None if decoder is None else Path(decoder))
    if chosen is None:
        chosen = _recipe(model.checkpoint.header.model, given)
    folder = Path(output or f"{_name(Path(checkpoint))}-w{bits}a{'f' if act_bits == 'none' else act_bits}")
    request = QuantizeRequest(
        recipe=chosen,
        budget=budget,
        calibration=None if calibration is None else Path(calibration),
        engine=engine,
        export=ExportRequest(
            targets=() if target is not None and list(target) == ["none"] else tuple(target or ("onnx",)),
            options=TargetOptions(coreml_os="iOS18"),  # the first with 4-bit weights, and with several functions in a package
            seed=seed,
            strict_bits=strict_bits,
        ),
        seed=seed,
    )
    assert isinstance(model.checkpoint, Checkpoint)  # noqa: S101 (a quantized one was refused)
    with observer.progress("quantizing") as update:
        work = Quantizing(
            str(checkpoint), model.checkpoint, model.decoder, request, folder, overwrite=overwrite,
            progress=lambda stage, done, total, note: update(done, total, f"{stage} {note}".strip()),
        )  # fmt: skip
        report = work.walk()
    return Quantization(folder, report, work.bundle if request.export.targets else None)


def _name(checkpoint: Path) -> str:
    return checkpoint.resolve().parent.name if checkpoint.stem == "checkpoint" else checkpoint.stem


def _recipe(model: "ModelConfig", given: Mapping[str, Any]) -> "Recipe":
    """From a verb's arguments to a recipe for a model."""
    from edge_sd.errors import UsageError
    from edge_sd.quantize.calibration import SEED, enough_trajectories
    from edge_sd.quantize.recipe import Recipe, default_layers, overridden
    from edge_sd.validation import validated

    widths = {"8": 8, "16": 16, "none": None}
    if given["act_bits"] not in widths:
        raise UsageError(f"activations cannot have {given['act_bits']} bits", "--act-bits 8, 16 or none")
    layers = default_layers(model, given["bits"], widths[given["act_bits"]], group=given["group"])  # type: ignore[arg-type]
    layers = overridden(layers, given["layer"] or ())
    values = {
        "model": model,
        "solver": given["solver"],
        "steps": given["steps"],
        "spacing": given["spacing"],
        "groups": given["groups"],
        "ranges": given["ranges"],
        "calibration": {
            "trajectories": given["trajectories"] or enough_trajectories(model.image_size),
            "coverage": given["coverage"],
            "interval": given["interval"],
            "seed": SEED + given["seed"],
        },
        "reconstruction": {"iterations": given["iterations"], "batch_size": given["batch_size"], "seed": given["seed"]},
        "layers": layers,
    }
    return validated(Recipe, values, "settings")
