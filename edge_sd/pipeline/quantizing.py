"""`edge-sd quantize`: calibration, reconstruction, measurement and bundle, each once; a kill loses a block at most."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edge_sd.bundle import open_bundle
from edge_sd.checkpoint import Checkpoint, versions
from edge_sd.decoder import Decoder
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.export import ExportRequest, export_bundle, find_targets
from edge_sd.files import fingerprint, read_model, write_bytes, write_model
from edge_sd.pipeline.stages import Stages, hash_of
from edge_sd.quantize import search
from edge_sd.quantize._quantize import CALIBRATION, MODEL, RECIPE, Quantized, calibrate, quantize
from edge_sd.quantize.checkpoint import load_quantized
from edge_sd.quantize.form import quantizable_form
from edge_sd.quantize.grouping import MOST_GROUPS, partition
from edge_sd.quantize.layers import layers_of
from edge_sd.quantize.quality import Quality, measure
from edge_sd.quantize.recipe import Recipe
from edge_sd.report.quantization import Allocation, QuantizationReport, coverage, coverage_picture, front_picture

REPORT, COVERAGE, FRONT, WORK = "quantize.json", "coverage.png", "front.png", "work"
Progress = Callable[[str, int, int, str], None]
# A quality that was predicted may not be met: so often more layers are widened.
_ATTEMPTS = 3


@dataclass(frozen=True)
class QuantizeRequest:
    """What is wanted.

    Attributes:
        budget: decides the bits of the layers, where there is one.
        calibration: file with captured inputs that is to be used as it is; None: they are captured.
        engine: edge-sd or nncf.
        export: targets of the bundle; none: no bundle.
        images: that quality is measured on.
    """

    recipe: Recipe
    budget: str = ""
    calibration: Path | None = None
    engine: str = "edge-sd"
    export: ExportRequest = field(default_factory=lambda: ExportRequest(targets=("onnx",)))
    images: int = 8
    seed: int = 0


class Quantizing:
    """One folder of a quantization.

    Args:
        model: name of the checkpoint, for people.
        overwrite: replace what lies in the folder, where it is of other settings.
        progress: called with (stage, done, total, note).
    """

    def __init__(
        self,
        model: str,
        parent: Checkpoint,
        decoder: Decoder | None,
        request: QuantizeRequest,
        out: Path,
        *,
        overwrite: bool = False,
        progress: Progress = lambda *_: None,
        observe: Callable[[str, str], None] = lambda stage, state: None,
    ) -> None:
        self.model, self.parent, self.decoder, self.request, self.out = model, parent, decoder, request, out
        self.overwrite, self.progress = overwrite, progress
        self.stages = Stages(out, observe)

    @property
    def bundle(self) -> Path:
        """Where the bundle is written."""
        return self.out / f"{self.out.name}.edgesd"

    def walk(self) -> QuantizationReport:
        """Do what is not done.

        Raises:
            UsageError: the folder holds something else, or a setting cannot be meant.
            EdgeSDError: a budget that cannot be met.
        """
        request = self.request
        request.recipe.check(self.parent.header.model)
        budget = search.parse_budget(request.budget) if request.budget else None
        if request.export.targets:
            find_targets(request.export.targets)
        self._refuse_other()
        settings = {
            "recipe": request.recipe.model_dump(mode="json"), "budget": request.budget, "images": request.images,
            "seed": request.seed,
        }  # fmt: skip
        inputs = {"weights": self.parent.header.digest, "decoder": self.decoder.header.digest if self.decoder else ""}
        if request.calibration is not None:
            inputs["calibration"] = hash_of(request.calibration)
        outputs = [self.out / name for name in (MODEL, RECIPE, REPORT, COVERAGE)]
        if not self.stages.done("quantize", settings, inputs, outputs):
            if (self.out / MODEL).exists() and not self.overwrite:
                raise UsageError(f"{self.out} holds another quantization", "give --overwrite to replace it, or another -o")
            self.stages.observe("quantize", "running")
            began = time.monotonic()
            self._quantize(budget)
            self.stages.keep("quantize", settings, inputs, outputs, time.monotonic() - began)
        if request.export.targets:
            exported = {"targets": request.export.targets, "options": request.export.options.model_dump(mode="json")}
            self.stages.run("export", exported, {"model": hash_of(self.out / MODEL)}, [self.bundle], self._export)
        return read_model(QuantizationReport, self.out / REPORT)

    def _refuse_other(self) -> None:
        known = {MODEL, RECIPE, REPORT, COVERAGE, FRONT, WORK, CALIBRATION, "stages", self.bundle.name}
        if self.out.exists() and (
            not self.out.is_dir() or any(path.name not in known for path in self.out.iterdir() if not path.name.startswith("."))
        ):
            raise UsageError(f"{self.out} exists and is no quantization", "choose another -o")

    def _quantize(self, budget: search.Budget | None) -> None:
        request, seconds = self.request, {}
        began = time.monotonic()
        own = request.calibration is None
        calibration = calibrate(
            self.parent, request.recipe, request.calibration or self.out / CALIBRATION, self.progress, own=own
        )
        seconds["calibration"] = time.monotonic() - began
        recipe, points, place = request.recipe, [], -1
        if budget is not None and budget.kind != "latency":
            form = quantizable_form(self.parent.build())
            shapes = {name: layer.shape for name, layer in layers_of(form).items()}
            measured = search.sensitivities(
                self.parent.build(), calibration, recipe, lambda done, total: self.progress("sensitivity", done, total, "")
            )
            points = search.front(measured, recipe, shapes)
            place = search.choose(points, budget)
        for attempt in range(_ATTEMPTS):
            if points:
                recipe = self._widened(request.recipe, points[place])
            found = quantize(self.parent, recipe, calibration, self._blocks(recipe), self.progress)
            quality = measure(
                self.parent.build(),
                found.checkpoint.build(),
                found.checkpoint.with_programs(found.plan),
                self.decoder,
                images=request.images,
                seed=request.seed,
                progress=lambda done, total: self.progress("measuring", done, total, ""),
            )
            if budget is None or budget.kind != "sqnr" or quality.mean_db >= budget.bound:
                break
            if place == len(points) - 1 or attempt == _ATTEMPTS - 1:
                raise EdgeSDError(
                    f"{quality.mean_db:.1f} dB are reached, the budget is {budget.bound:g} dB",
                    "a lower budget, --act-bits 16 or none, or more --iterations",
                )
            missing = budget.bound - quality.mean_db
            place = next(
                (index for index, point in enumerate(points) if point.predicted_db >= points[place].predicted_db + missing),
                len(points) - 1,
            )
        seconds["in all"] = time.monotonic() - began
        self._write(found, _report(self.model, found, quality, points, place, request.budget, seconds))

    def _widened(self, recipe: Recipe, point: search.Point) -> Recipe:
        changed = {name: bits for name, bits in point.bits.items() if bits != recipe.layers[name].bits}
        return recipe.with_bits(changed, f"the budget {self.request.budget}")

    def _blocks(self, recipe: Recipe) -> Path:
        return self.out / WORK / fingerprint(recipe.model_dump(mode="json"))

    def _write(self, found: Quantized, report: QuantizationReport) -> None:
        found.checkpoint.header.recipe.save(self.out / RECIPE)
        write_bytes(self.out / COVERAGE, coverage_picture(report) if report.coverage else b"")
        if report.front:
            write_bytes(self.out / FRONT, front_picture(report))
        write_model(self.out / REPORT, report)
        found.checkpoint.save(self.out / MODEL)

    def _export(self) -> None:
        checkpoint, recipe = load_quantized(self.out / MODEL), self.request.recipe
        request = replace(self.request.export, solver=recipe.solver, steps=recipe.steps, spacing=recipe.spacing)
        export_bundle(
            checkpoint, self.bundle, request, decoder=self.decoder, overwrite=True,
            observe=lambda what: self.progress("export", 0, 1, what),
        )  # fmt: skip
        open_bundle(self.bundle)


def _report(
    model: str,
    found: Quantized,
    quality: Quality,
    points: list[search.Point],
    place: int,
    budget: str,
    seconds: dict[str, float],
) -> QuantizationReport:
    checkpoint = found.checkpoint
    recipe, layers = checkpoint.header.recipe, layers_of(checkpoint.build())
    numbers = {name: math.prod(layer.shape) for name, layer in layers.items()}
    tensors = {name: value for name, value in checkpoint.tensors.items() if not name.startswith("temporal_net.")}
    codes = sum(value.nbytes for name, value in tensors.items() if name.endswith(".codes"))
    own = [value for name, value in tensors.items() if name.rpartition(".")[2] not in ("scales", "step_scales")]
    floats = sum(value.size for value in own if value.dtype == np.float32)
    quantized = sum(numbers[name] for name in recipe.grids)
    costs = [partition(found.cost, groups)[1] for groups in range(1, min(MOST_GROUPS, len(found.cost)) + 1)]
    return QuantizationReport(
        engine=checkpoint.header.engine,
        model=model,
        starts=recipe.starts,
        group_costs=tuple(costs),
        quality=quality,
        blocks=checkpoint.header.blocks,
        coverage=coverage(found.again, found.grids, recipe.starts),
        weights_bytes=sum(value.nbytes for value in tensors.values()),
        float_bytes=4 * (quantized + floats),
        effective_bits=8 * codes / quantized if quantized else 32.0,
        front=tuple(
            Allocation(
                bytes=point.bytes,
                predicted_db=point.predicted_db,
                wide=sum(bits == search.WIDE for bits in point.bits.values()),
                chosen=index == place,
            )
            for index, point in enumerate(points)
        ),
        budget=budget,
        calibration=checkpoint.header.calibration,
        seconds=seconds,
        versions=versions(),
    )
