"""`edge-sd quantize`: calibration, reconstruction, measurement and bundle, each once; a kill loses a block at most."""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_sd.bundle import Bundle, write_bundle
from edge_sd.bundle.manifest import DECODER, Manifest
from edge_sd.checkpoint import Checkpoint, versions
from edge_sd.decoder import Decoder
from edge_sd.errors import EdgeSDError, UsageError, unknown
from edge_sd.export import ExportRequest, carded, export_bundle, find_targets
from edge_sd.files import fingerprint, read_model, write_bytes, write_model
from edge_sd.pipeline.latency import under_latency
from edge_sd.pipeline.stages import Stages, hash_of
from edge_sd.quantize import CALIBRATION, MODEL, RECIPE, Quantized, calibrate, quantize, search
from edge_sd.quantize.checkpoint import load_quantized
from edge_sd.quantize.layers import layers_of
from edge_sd.quantize.quality import Quality, measure, simulated
from edge_sd.quantize.recipe import Recipe, described
from edge_sd.report.card import card_path, quantization_figures, write_card
from edge_sd.report.quantization import Allocation, QuantizationReport, coverage, coverage_picture, front_picture
from edge_sd.runtimes import find_runtime

REPORT, COVERAGE, FRONT, WORK = "quantize.json", "coverage.png", "front.png", "work"
ENGINES = ("edge-sd", "nncf")
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
        if request.engine not in ENGINES:
            raise unknown("engine", request.engine, ENGINES)
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
        if request.engine == "nncf":
            return self._by_nncf(settings, inputs)
        outputs = [self.out / name for name in (MODEL, RECIPE, REPORT, COVERAGE)]
        if not self.stages.done("quantize", settings, inputs, outputs):
            if (self.out / MODEL).exists() and not self.overwrite:
                raise UsageError(f"{self.out} holds another quantization", "give --overwrite to replace it, or another -o")
            self.stages.observe("quantize", "running")
            began = time.monotonic()
            self._quantize(budget)
            self.stages.keep("quantize", settings, inputs, outputs, time.monotonic() - began)
        if request.export.targets:
            exported = {
                "targets": request.export.targets,
                "options": request.export.options.model_dump(mode="json"),
                "strict": request.export.strict_bits,
            }
            made = [self.bundle, card_path(self.bundle)]
            self.stages.run("export", exported, {"model": hash_of(self.out / MODEL)}, made, self._export)
        return read_model(QuantizationReport, self.out / REPORT)

    def _refuse_other(self) -> None:
        known = {DECODER, MODEL, RECIPE, REPORT, COVERAGE, FRONT, WORK, CALIBRATION, "stages", self.bundle.name}
        known.add(card_path(self.bundle).name)
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
        model = self.parent.build()
        if budget is not None and budget.kind != "latency":
            shapes = {name: layer.shape for name, layer in described(recipe.model).items()}
            measured = search.sensitivities(
                model, calibration, recipe, lambda done, total: self.progress("sensitivity", done, total, "")
            )
            points = search.front(measured, recipe, shapes)
            place = search.choose(points, budget)
        if budget is not None and budget.kind == "latency":
            recipe, share = under_latency(
                self.parent,
                recipe,
                calibration,
                budget.bound,
                self.out / WORK,
                lambda done, total, note: self.progress("latency", done, total, note),
            )
            seconds["latency share"] = share
        for attempt in range(_ATTEMPTS):
            if points:
                recipe = self._widened(request.recipe, points[place])
            found = quantize(self.parent, recipe, calibration, self._blocks(recipe), self.progress)
            quality = measure(
                model,
                simulated(found.checkpoint.build(), found.plan),
                found.plan,
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
        if self.decoder is not None:
            self.decoder.save(self.out / DECODER)
        found.checkpoint.save(self.out / MODEL)

    def _export(self) -> None:
        checkpoint, recipe = load_quantized(self.out / MODEL), self.request.recipe
        request = replace(self.request.export, solver=recipe.solver, steps=recipe.steps, spacing=recipe.spacing)
        export_bundle(
            checkpoint, self.bundle, request, decoder=self.decoder, overwrite=True,
            observe=lambda what: self.progress("export", 0, 1, what),
        )  # fmt: skip
        write_card(self.bundle, quantization_figures(read_model(QuantizationReport, self.out / REPORT)))

    # NNCF in place of our own roundings and ranges

    def _by_nncf(self, settings: dict[str, Any], inputs: dict[str, str]) -> QuantizationReport:
        outputs = [self.out / REPORT, self.bundle, card_path(self.bundle)]
        if not self.stages.done("nncf", settings, inputs, outputs):
            if self.bundle.exists() and not self.overwrite:
                raise UsageError(f"{self.out} holds another quantization", "give --overwrite to replace it, or another -o")
            self.stages.observe("nncf", "running")
            began = time.monotonic()
            self._nncf()
            self.stages.keep("nncf", settings, inputs, outputs, time.monotonic() - began)
        return read_model(QuantizationReport, self.out / REPORT)

    def _nncf(self) -> None:
        from edge_sd.quantize.nncf import nncf_quantize

        request, recipe = self.request, self.request.recipe
        if request.export.targets != ("onnx",):
            raise UsageError("NNCF quantizes ONNX programs alone", "--target onnx")
        inner = next((layer for layer in recipe.layers.values() if not layer.why and layer.bits), None)
        bits, activations = (8, 8) if inner is None else (inner.bits or 8, inner.input)
        began = time.monotonic()
        own = request.calibration is None
        calibration = calibrate(self.parent, recipe, request.calibration or self.out / CALIBRATION, self.progress, own=own)
        export = replace(request.export, solver=recipe.solver, steps=recipe.steps, spacing=recipe.spacing)
        exact = export_bundle(self.parent, self.out / WORK / "float.edgesd", export, decoder=self.decoder, overwrite=True)
        program = exact.path / exact.program("onnx").file
        quantized = self.out / WORK / "denoiser.onnx"
        self.progress("nncf", 0, 1, "")
        nncf_quantize(program, calibration, quantized, bits=bits, activations=activations)
        bundle = self._replaced(exact, quantized)
        session = find_runtime("onnxruntime").load(bundle)
        rows = bundle.golden.trajectories[0].features

        def predict(x: torch.Tensor, row: int) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([session(one[None], rows[row : row + 1]) for one in x.numpy()]))

        model = self.parent.build()
        quality = measure(model, predict, bundle.plan, self.decoder, images=request.images, seed=request.seed)
        report = QuantizationReport(
            digest=bundle.manifest.digest,
            engine="nncf",
            model=self.model,
            starts=(0,),
            group_errors=(),
            quality=quality,
            blocks=(),
            coverage=(),
            weights_bytes=quantized.stat().st_size,
            float_bytes=program.stat().st_size,
            effective_bits=8.0,
            calibration=calibration.header.digest,
            seconds={"in all": time.monotonic() - began},
            versions=versions(),
        )
        write_model(self.out / REPORT, report)
        write_card(self.bundle, quantization_figures(report))

    def _replaced(self, exact: Bundle, quantized: Path) -> Bundle:
        """The full-precision bundle with another denoiser for ONNX."""

        def fill(folder: Path) -> Manifest:
            for name in exact.manifest.files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(exact.path / name, folder / name)
            shutil.copyfile(quantized, folder / exact.program("onnx").file)
            programs = tuple(
                program.model_copy(update={"options": {**program.options, "engine": "nncf"}})
                if (program.target, program.name) == ("onnx", "denoiser")
                else program
                for program in exact.manifest.programs
            )
            changed = exact.manifest.model_copy(update={"name": self.bundle.stem, "programs": programs})
            return carded(folder, changed, exact.plan, self.parent.header)

        return write_bundle(self.bundle, fill, overwrite=True)


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
    return QuantizationReport(
        digest=checkpoint.header.digest,
        engine=checkpoint.header.engine,
        model=model,
        starts=recipe.starts,
        group_errors=tuple(found.errors),
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
