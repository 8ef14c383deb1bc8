"""A diffusers scheduler → our noise schedule and prediction.

A scheduler of diffusers is a noise schedule and a solver in one. Only the first belongs to the model; which solver is used, and
at which timesteps, is a matter of the plan here.
"""

from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from edge_sd.diffusion.plan import Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.errors import EdgeSDError
from edge_sd.foreign.weights import class_of, settings_of
from edge_sd.validation import first_fault

# Schedulers whose ᾱ is the product of 1 − β, with the betas of the class where the file gives none.
_DDPM, _STABLE = (0.0001, 0.02), (0.00085, 0.012)
SCHEDULERS: dict[str, tuple[float, float]] = {
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "DDIMScheduler": _DDPM,
    "DDIMParallelScheduler": _DDPM,
    "DDIMInverseScheduler": _DDPM,
    "PNDMScheduler": _DDPM,
    "DPMSolverMultistepScheduler": _DDPM,
    "DPMSolverSinglestepScheduler": _DDPM,
    "DPMSolverSDEScheduler": _STABLE,
    "DEISMultistepScheduler": _DDPM,
    "UniPCMultistepScheduler": _DDPM,
    "EulerDiscreteScheduler": _DDPM,
    "EulerAncestralDiscreteScheduler": _DDPM,
    "LMSDiscreteScheduler": _DDPM,
    "HeunDiscreteScheduler": _STABLE,
    "KDPM2DiscreteScheduler": _STABLE,
    "KDPM2AncestralDiscreteScheduler": _STABLE,
}

_KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}

# What would change the process itself: setting → the values under which it does not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "beta_schedule": tuple(_KINDS),
    "prediction_type": tuple(_PREDICTIONS),
    "predict_epsilon": (None, True),  # before diffusers 0.9
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False, None),
    "use_flow_sigmas": (False, None),
    "timestep_type": ("discrete", None),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}


class SchedulerConfig(BaseModel):
    """The fields of a `scheduler_config.json` that say which process a model was trained for; the rest is the solver's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    num_train_timesteps: int = 1000
    beta_start: float
    beta_end: float
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"


def read_schedule(values: Mapping[str, Any], source: Path) -> tuple[NoiseSchedule, Prediction]:
    """Translate what a `scheduler_config.json` (`source`, for the messages) holds.

    Raises:
        EdgeSDError: a class or a setting for which `NoiseSchedule` has no counterpart, by name, or a value that cannot be.
    """
    name = class_of(values, source)
    if name not in SCHEDULERS:
        raise EdgeSDError(
            f"{source}: {name} is a scheduler that has no counterpart here", f"those that have one: {', '.join(SCHEDULERS)}"
        )
    for field, plain in _PLAIN.items():
        if field in values and values[field] not in plain:
            raise EdgeSDError(
                f"{source}: {field} is {shorten(repr(values[field]), 60)}, which NoiseSchedule has no counterpart for",
                f"it has {', '.join(map(repr, plain))}",
            )
    start, end = SCHEDULERS[name]
    config = settings_of(SchedulerConfig, {"beta_start": start, "beta_end": end, **values}, source)
    try:
        schedule = NoiseSchedule.model_validate(
            {
                "kind": _KINDS[config.beta_schedule],
                "beta_start": config.beta_start,
                "beta_end": config.beta_end,
                "timesteps": config.num_train_timesteps,
            }
        )
    except ValidationError as error:
        raise EdgeSDError(f"{source}: {first_fault(error)}", "compare it with what diffusers writes for this class") from error
    return schedule, _PREDICTIONS[config.prediction_type]
