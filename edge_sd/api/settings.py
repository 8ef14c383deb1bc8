"""From what a caller gives to what the rest takes: settings out of arguments, plans, presets."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sd.errors import UsageError
from edge_sd.validation import Model, validated

if TYPE_CHECKING:
    from edge_sd.diffusion.choice import PlanSource
    from edge_sd.models import ModelConfig, Preset


def pick(kind: type[Model], values: Mapping[str, object], what: str) -> Model:
    """Build settings of `kind` from those of a verb's arguments that are among its fields."""
    return validated(kind, {name: values[name] for name in kind.model_fields if name in values}, what)


def plan_source(
    plan: Path | None, solver: str | None, steps: int | None, spacing: str | None, eta: float = 0.0
) -> "PlanSource | None":
    """The plan that a verb's arguments ask for; None where nothing is asked for.

    Raises:
        UsageError: a file, and something beside it.
    """
    from edge_sd.diffusion.choice import PlanChoice, PlanFile

    given = {"solver": solver, "steps": steps, "spacing": spacing, "eta": eta or None}
    chosen = {name: value for name, value in given.items() if value is not None}
    if plan is None:
        return pick(PlanChoice, chosen, "plan") if chosen else None
    if chosen:
        named = ", ".join(f"--{name}" for name in chosen)
        raise UsageError(f"--plan {plan} says all of the plan, and {named} something else", f"leave {named} out, or --plan")
    return PlanFile(path=plan)


def model_of(preset_name: str, size: int | None) -> "tuple[Preset, ModelConfig]":
    """Find a preset and, where a size is given, its configuration at that size.

    Raises:
        UsageError: there is none of that name, or it cannot have that size.
    """
    from edge_sd.errors import unknown
    from edge_sd.models import PRESETS, ModelConfig

    if preset_name not in PRESETS:
        raise unknown("preset", preset_name, PRESETS)
    preset = PRESETS[preset_name]
    if size is None:
        return preset, preset.config
    return preset, validated(
        ModelConfig, {**preset.config.model_dump(), "image_size": size}, f"preset {preset_name} at --size {size}"
    )
