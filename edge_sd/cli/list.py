"""`edge-sd list`: what can be named on the command line."""

from enum import Enum
from typing import Annotated, Any

import typer

from edge_sd.cli import _options as option


class Kind(str, Enum):
    """What there are lists of."""

    presets = "presets"
    solvers = "solvers"
    targets = "targets"
    runtimes = "runtimes"
    devices = "devices"


def list_(kind: Annotated[Kind, typer.Argument(help="What to list.")], as_json: option.AsJson = False) -> None:
    """List presets (with what was published beside what is counted), solvers, targets, runtimes or devices.

    Example: edge-sd list presets
    """
    rows = _ROWS[kind]()
    if as_json:
        import json

        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=kind.value)
    for title in rows[0]:
        table.add_column(
            title, justify="right" if isinstance(rows[0][title], float) or " M" in title or " G" in title else "left"
        )
    for row in rows:
        table.add_row(
            *("–" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values())
        )
    console = Console()
    console.print(table)
    if kind is Kind.presets:
        console.print(
            "MACs of one call at batch 1, without attention's two matrix products (as papers count) and with them (+attn)."
        )


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
                "params M": round(found.parameters / 1e6, 2),
                "published M": preset.published.parameters_m if preset.published else None,
                "MACs G": round(found.macs / 1e9, 3),
                "published G": preset.published.gmacs if preset.published else None,
                "+attn G": round((found.macs + found.attention_macs) / 1e9, 3),
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

    return _extensions("device", devices())


_ROWS = {Kind.presets: _presets, Kind.solvers: _solvers, Kind.targets: _targets, Kind.runtimes: _runtimes, Kind.devices: _devices}
