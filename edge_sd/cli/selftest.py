"""`edge-sd selftest`: are the measures right, and does every runtime run, on this machine?"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sd.cli import _options as option

if TYPE_CHECKING:
    from edge_sd.models.unet import SpectralUNet


@dataclass(frozen=True)
class Check:
    """One line: what was checked, whether it holds, what was found and what was expected."""

    what: str
    holds: str
    found: str
    expected: str


def selftest(form: option.Form = "text") -> None:
    """Check each measure against closed forms, and each runtime on a tiny program made for it. About a minute.

    Exit code 1 where a measure is wrong or a runtime that is installed does not draw what the reference draws.

    Example: edge-sd selftest
    """
    import tempfile

    from edge_sd.cli._console import print_table, progress
    from edge_sd.errors import EdgeSDError

    checks = _measures()
    with tempfile.TemporaryDirectory() as folder, progress("selftest") as update:
        checks += _runtimes(Path(folder), update)
    if form == "json":
        import json

        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        columns = ("what", "holds", "found", "expected")
        print_table("edge-sd selftest", columns, [list(asdict(check).values()) for check in checks])
    wrong = [check for check in checks if check.holds == "no"]
    if wrong:
        raise EdgeSDError(
            f"{len(wrong)} checks do not hold; the first: {wrong[0].what}: {wrong[0].found}, expected {wrong[0].expected}",
            "edge-sd doctor shows the versions that were tested together",
        )


def _measures() -> list[Check]:
    from edge_sd.evaluation.closed_forms import closed_forms

    return [
        Check(law.what, "yes" if law.holds else "no", f"{law.found:.4f}", f"{law.expected:.4f} ± {law.tolerance:g}")
        for law in closed_forms()
    ]


def _runtimes(folder: Path, update: Callable[[int, int, str], None]) -> list[Check]:
    """Every runtime that is installed draws a few steps of a tiny gated model with random weights."""
    from edge_sd.checkpoint import Checkpoint, Provenance
    from edge_sd.diffusion import SCHEDULES
    from edge_sd.errors import EdgeSDError
    from edge_sd.export import ExportRequest, export_bundle, targets
    from edge_sd.models import ModelConfig
    from edge_sd.models.unet import SpectralUNet
    from edge_sd.runtimes import runtimes
    from edge_sd.runtimes.parity import check_parity

    config = ModelConfig(
        image_size=8, width=8, multipliers=(1, 2), blocks=1, attention=(2,), head_channels=8, norm_groups=4, gating=True
    )
    checkpoint = Checkpoint.of(_random(SpectralUNet(config)), SCHEDULES["cosine"], "v", Provenance(made_by="selftest", steps=0))
    installed = tuple(name for name, target in targets().items() if target.available().ok)
    update(0, 1, "exporting a tiny program")
    request = ExportRequest(installed, solver="ddpm", steps=4, goldens=2, temporal=True)
    bundle = export_bundle(checkpoint, folder / "selftest.edgesd", request)
    checks = []
    known = runtimes()
    for number, runtime in enumerate(known.values()):
        update(number, len(known), runtime.name)
        available = runtime.available()
        if not available.ok or runtime.target not in (*installed, "torch"):
            why = available.detail if not available.ok else f"the target {runtime.target} is not installed"
            checks.append(Check(f"runtime {runtime.name}", "missing", why, available.remedy))
            continue
        try:
            result, _ = check_parity(bundle, runtime.name)
            gate = result.worst_step.forced.gate_db
            found = f"{result.worst_step.forced.value_db:.1f} dB at the worst step"
            checks.append(Check(f"runtime {runtime.name}", "yes" if result.passed else "no", found, f"{gate:.1f} dB or more"))
        except EdgeSDError as error:
            checks.append(Check(f"runtime {runtime.name}", "no", error.message, "a tiny program that runs"))
    update(len(known), len(known), "")
    return checks


def _random(model: "SpectralUNet") -> "SpectralUNet":
    """Weights in which every layer counts, those too that a training starts at zero."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.normal_(0, fan_in**-0.5, generator=generator)
    return model.eval()
