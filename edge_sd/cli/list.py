"""`edge-sd list`: what can be named on the command line."""

from enum import Enum
from typing import Annotated, Any

import typer

from edge_sd.cli import _options as option


class Kind(str, Enum):
    """What there are lists of."""

    models = "models"
    presets = "presets"
    solvers = "solvers"
    targets = "targets"
    runtimes = "runtimes"
    devices = "devices"


def list_(kind: Annotated[Kind, typer.Argument(help="What to list.")], form: option.Form = "text") -> None:
    """List shipped models, presets (with what was published beside what is counted), solvers, targets, runtimes or devices.

    Example: edge-sd list presets
    """
    from edge_sd.cli._console import print_table

    rows = _ROWS[kind]()
    if form == "json":
        import json

        print(json.dumps(rows, indent=2))
        return
    note = (
        "MACs of one call at batch 1, without attention's matrix products (as papers count) and with them."
        if kind is Kind.presets
        else ""
    )
    print_table(kind.value, list(rows[0]), [list(row.values()) for row in rows], note)


def _presets() -> list[dict[str, Any]]:
    from edge_sd.models import PRESETS
    from edge_sd.models.count import count

    rows = []
    for name, preset in PRESETS.items():
        found = count(preset.config)
        channels, size, _ = preset.config.sample_shape
        rows.append(
            {
                "preset": name,
                "sample": f"{channels}×{size}×{size}",
                "M parameters": round(found.parameters / 1e6, 2),
                "published M": preset.published and f"{preset.published.parameters_m:.1f}",
                "GMACs": round(found.macs / 1e9, 3),
                "published G": preset.published and f"{preset.published.gmacs:.1f}",
                "with attention": round((found.macs + found.attention_macs) / 1e9, 3),
                "for": preset.about,
            }
        )
    return rows


def _solvers() -> list[dict[str, Any]]:
    from edge_sd.diffusion import solvers

    return [{"solver": name, "spacing": solver.default_spacing, "about": solver.about} for name, solver in solvers().items()]


def _extensions(title: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, value in found.items():
        available = value.available()
        rows.append({title: name, "about": value.about, "here": "yes" if available.ok else "no", "detail": available.detail})
    return rows


def _targets() -> list[dict[str, Any]]:
    from edge_sd.export import targets

    return _extensions("target", targets())


def _runtimes() -> list[dict[str, Any]]:
    from edge_sd.runtimes import runtimes

    return _extensions("runtime", runtimes())


def _devices() -> list[dict[str, Any]]:
    from edge_sd.devices import devices

    found = devices()
    return [{**row, "--device": found[row["device"]].usage} for row in _extensions("device", found)]


def _models() -> list[dict[str, Any]]:
    from edge_sd.foreign import open_model
    from edge_sd.models.count import count
    from edge_sd.pretrained import DEFAULT, SHIPPED

    rows = []
    for name, path in SHIPPED.items():
        header = open_model(path).checkpoint.header
        rows.append(
            {
                "model": name,
                "M parameters": round(count(header.model).parameters / 1e6, 2),
                "MiB": round(path.stat().st_size / 2**20, 2),
                "trained on": header.provenance.data,
                "steps": header.provenance.steps,
                "what it is for": "the default" if name == DEFAULT else "to distil from",
            }
        )
    return rows


_ROWS = {
    Kind.models: _models,
    Kind.presets: _presets,
    Kind.solvers: _solvers,
    Kind.targets: _targets,
    Kind.runtimes: _runtimes,
    Kind.devices: _devices,
}
