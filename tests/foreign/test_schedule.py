"""Schedulers' ᾱ are our schedule's; what would be another process is named."""

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from edge_sd.errors import EdgeSDError
from edge_sd.foreign.schedule import SCHEDULERS, read_schedule

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # diffusers' KDPM2 schedulers

SOURCE = Path("scheduler_config.json")
# What this environment cannot make: it needs torchsde.
MADE = [name for name in SCHEDULERS if name != "DPMSolverSDEScheduler"]


@pytest.mark.parametrize("timesteps", [20, 1000])
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", MADE)
def test_alpha_bar_is_the_scheduler_s(name: str, kind: str, timesteps: int, tmp_path: Path) -> None:
    theirs = getattr(diffusers, name)(beta_schedule=kind, num_train_timesteps=timesteps)
    theirs.save_pretrained(tmp_path)
    schedule, prediction = read_schedule(json.loads((tmp_path / SOURCE).read_text()), SOURCE)
    assert prediction == "epsilon"
    assert schedule.timesteps == timesteps
    np.testing.assert_allclose(schedule.alpha_bar(np.arange(timesteps)), theirs.alphas_cumprod, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MADE)
def test_defaults_are_those_of_diffusers(name: str) -> None:
    schedule, _ = read_schedule({"_class_name": name}, SOURCE)
    expected = getattr(diffusers, name)().alphas_cumprod
    np.testing.assert_allclose(schedule.alpha_bar(np.arange(1000)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("theirs", "ours"), [("epsilon", "epsilon"), ("v_prediction", "v"), ("sample", "x0")])
def test_predictions(theirs: str, ours: str) -> None:
    assert read_schedule({"_class_name": "DDIMScheduler", "prediction_type": theirs}, SOURCE)[1] == ours


def test_what_belongs_to_the_solver_does_not_matter() -> None:
    values = {"_class_name": "DDIMScheduler", "beta_end": 0.01}
    solver = {"clip_sample": True, "steps_offset": 1, "timestep_spacing": "trailing", "variance_type": "fixed_large", "foo": 1}
    assert read_schedule({**values, **solver}, SOURCE) == read_schedule(values, SOURCE)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"beta_schedule": "sigmoid"}, "config.json: beta_schedule is 'sigmoid', which NoiseSchedule has no counterpart for"),
        ({"beta_schedule": None}, "beta_schedule is None"),
        ({"beta_schedule": ["linear"]}, "beta_schedule is ['linear']"),
        ({"trained_betas": [0.1] * 1000}, "trained_betas is [0.1,"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True"),
        ({"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'"),
        ({"predict_epsilon": False}, "predict_epsilon is False"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas is True"),
        ({"timestep_type": "continuous"}, "timestep_type is 'continuous'"),
        ({"variance_type": "learned_range"}, "variance_type is 'learned_range'"),
        ({"beta_start": "small"}, "beta_start"),
        ({"beta_start": 0.5}, "beta_end 0.02 is below beta_start 0.5"),
        ({"num_train_timesteps": 1}, "timesteps"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "EulerDiscreteScheduler is a scheduler that has no counterpart"),
        ({"_class_name": 5}, "has no _class_name"),
    ],
)  # fmt: skip
def test_another_process_is_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(EdgeSDError, match=re.escape(complaint)):
        read_schedule({"_class_name": "DDPMScheduler", **changes}, SOURCE)
