"""A checkpoint and a plan become a bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sd.api.observer import SILENT, Observer
from edge_sd.pretrained import DEFAULT

if TYPE_CHECKING:
    from edge_sd.bundle import Bundle
    from edge_sd.export import Check, ExportRequest
    from edge_sd.quantize.checkpoint import Opened


def export(
    checkpoint: str | Path = DEFAULT,
    *,
    target: Sequence[str],
    output: str | Path | None = None,
    solver: str | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    plan: str | Path | None = None,
    decoder: str | Path | None = None,
    strict_bits: bool = False,
    temporal: bool = False,
    onnx_opset: int = 18,
    delegate: str = "xnnpack",
    coreml_precision: str = "fp16",
    coreml_os: str = "iOS17",
    ram_budget: str | None = None,
    max_fallback: float | None = None,
    seed: int = 0,
    goldens: int = 3,
    overwrite: bool = False,
    observer: Observer = SILENT,
) -> "Bundle":
    """Export a checkpoint to a bundle; what `edge-sd export` does, with its arguments.

    Args:
        checkpoint: checkpoint, quantized or not, diffusers folder or shipped model.
        output: NAME.edgesd; beside the checkpoint if left out, in the current folder if it is a shipped one.

    Raises:
        UsageError: an unknown name, an option or operator that a target refuses, or `output` exists.
        EdgeSDError: a program will not fit the budget or the disk.
    """
    return Exporting.of(dict(locals())).write(observer)


@dataclass(frozen=True)
class Exporting:
    """An export whose arguments are checked, and whose weights are read.

    Attributes:
        out: NAME.edgesd.
    """

    opened: "Opened"
    request: "ExportRequest"
    out: Path
    overwrite: bool

    @classmethod
    def of(cls, given: Mapping[str, Any], *, dry_run: bool = False) -> "Exporting":
        """From the arguments of `export`.

        Args:
            dry_run: nothing will be written, so `output` may exist.
        """
        from edge_sd.api.settings import pick, plan_source
        from edge_sd.bundle.bundle import SUFFIX
        from edge_sd.diffusion.choice import PlanFile, lineage
        from edge_sd.errors import UsageError
        from edge_sd.export import ExportRequest, TargetOptions, find_targets, parse_size
        from edge_sd.pretrained import model_path
        from edge_sd.quantize.checkpoint import QuantizedHeader, open_any

        named, path = Path(given["checkpoint"]), model_path(given["checkpoint"])
        beside = Path(f"{path.resolve().name}{SUFFIX}") if path.is_dir() else path.with_suffix(SUFFIX)
        out = Path(given["output"] or (beside if path == named else named.name + SUFFIX))
        if out.exists() and not given["overwrite"] and not dry_run:  # before the weights are read
            raise UsageError(f"{out} exists", "give --overwrite to replace it, or another -o")
        target_options = pick(TargetOptions, {**given, "executorch_delegate": given["delegate"]}, "options of the target")
        find_targets(tuple(given["target"]))
        solver, steps, spacing = given["solver"], given["steps"], given["spacing"]
        source = plan_source(_path(given["plan"]), solver, steps, spacing)
        opened = open_any(path, _path(given["decoder"]))
        header = opened.checkpoint.header
        recipe = header.recipe if isinstance(header, QuantizedHeader) else None
        own = ("dpmpp", 20, None) if recipe is None else (recipe.solver, recipe.steps, recipe.spacing)
        read = source.plan(header.noise_schedule, header.prediction, lineage(header)) if isinstance(source, PlanFile) else None
        request = ExportRequest(
            targets=tuple(given["target"]), options=target_options, solver=solver or own[0],
            steps=own[1] if steps is None else steps, spacing=spacing or own[2], plan=read, seed=given["seed"],
            goldens=given["goldens"], temporal=given["temporal"], max_fallback=given["max_fallback"],
            strict_bits=given["strict_bits"], ram_budget=given["ram_budget"] and parse_size(given["ram_budget"]),
        )  # fmt: skip
        return cls(opened, request, out, given["overwrite"])

    def check(self) -> "list[Check]":
        """What would be refused and what would be needed; nothing is written."""
        from edge_sd.export import check_export

        return check_export(self.opened.checkpoint, self.opened.decoder, self.request, self.out)

    def write(self, observer: Observer) -> "Bundle":
        """Export."""
        from edge_sd.export import export_bundle

        return export_bundle(
            self.opened.checkpoint, self.out, self.request, decoder=self.opened.decoder, overwrite=self.overwrite,
            observe=lambda stage: observer.say(f"exporting: {stage}"),
        )  # fmt: skip


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)
