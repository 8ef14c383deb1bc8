"""Calibration inputs: those of the sampling loop, of the steps that were asked for, and of this model and plan alone."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edge_sd.checkpoint import Checkpoint
from edge_sd.diffusion import SCHEDULES, Plan, compile_plan
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import tensors_digest, write_tensors
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize._quantize import calibrate
from edge_sd.quantize.calibration import Calibration, CalibrationRequest, Coverage, capture, covered_steps, load_calibration
from edge_sd.quantize.recipe import Recipe
from edge_sd.sampling import plan_features, sample_model

MakeModel = Callable[..., SpectralUNet]


def request(coverage: Coverage = "every", trajectories: int = 3, **rest: int) -> CalibrationRequest:
    return CalibrationRequest(coverage=coverage, trajectories=trajectories, **rest)


# Coverage


@given(
    st.integers(1, 50),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(0, 10),
    st.sampled_from(["every", "uniform", "skew-normal"]),
)
def test_steps_of_a_trajectory(steps: int, trajectories: int, interval: int, seed: int, coverage: Coverage) -> None:
    found = covered_steps(request(coverage, trajectories, interval=interval, seed=seed), steps)
    assert len(found) == trajectories
    for of in found:
        assert of == sorted(set(of))
        assert set(of) <= set(range(steps))
        assert of
    if coverage == "every":
        assert found == [list(range(steps))] * trajectories
    if coverage == "uniform":
        assert {b - a for of in found for a, b in itertools.pairwise(of)} <= {interval}
        assert all(of[-1] == steps - 1 and of[0] < interval for of in found)
    if coverage == "skew-normal":
        assert {len(of) for of in found} == {max(steps // 2, 1)}


def test_skew_normal_leans_to_the_image() -> None:
    """Its mode lies beyond half of the way and before its end; each trajectory has steps of its own."""
    steps = 20
    found = covered_steps(request("skew-normal", 2000), steps)
    counts = np.bincount(np.concatenate(found), minlength=steps)
    assert counts[steps // 2 :].sum() > 2 * counts[: steps // 2].sum()
    assert steps // 2 < counts.argmax() < steps - 1
    assert (counts > 0).all()
    assert len({tuple(of) for of in found[:50]}) > 40


def test_skew_normal_by_its_seed() -> None:
    first, again, other = (covered_steps(request("skew-normal", 20, seed=seed), 20) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("changes", [{"trajectories": 0}, {"interval": 0}, {"seed": -1}, {"coverage": "all"}, {"steps": 3}])
def test_requests_that_cannot_be_meant(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        CalibrationRequest.model_validate(changes)


# What is captured


def seen_by(model: SpectralUNet, plan: Plan, seed: int, count: int, label: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What `sample_model` gives the denoiser: (steps, count, C, H, W) and (steps, count, F)."""
    samples, features = [], []
    denoise = model.denoise

    def watched(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        samples.append(x.numpy().copy())
        features.append(rows.numpy().copy())
        return denoise(x, rows)

    model.denoise = watched  # type: ignore[method-assign]
    try:
        sample_model(model, plan, seed=seed, count=count, batch_size=count, label=label)
    finally:
        del model.denoise
    return np.stack(samples), np.stack(features)


@pytest.mark.parametrize("solver", ["dpmpp", "ddpm"])  # with fresh noise at each step, and without
def test_inputs_are_those_of_the_loop(solver: str, make_model: MakeModel) -> None:
    model = make_model(image_size=8)
    plan = compile_plan(SCHEDULES["cosine"], 4, solver=solver, prediction="v")
    found = capture(model, plan, request(trajectories=3, seed=7), "0" * 64)
    samples, features = seen_by(model, plan, 7, 3)
    assert found.covered == [0, 1, 2, 3]
    for step in range(4):
        np.testing.assert_array_equal(found.samples[found.rows == step], samples[step])
        np.testing.assert_array_equal(found.features[found.rows == step], features[step])
    assert (found.samples.dtype, found.rows.dtype, found.features.dtype) == (np.float32, np.int64, np.float32)
    assert len(found) == 12


def test_more_trajectories_than_a_batch(make_model: MakeModel) -> None:
    """Trajectory i is that of (seed, i), whatever else is drawn; up to the order of sums in a batch of another size."""
    model, done = make_model(image_size=8), []
    plan = compile_plan(SCHEDULES["cosine"], 2, prediction="v")
    found = capture(model, plan, request(trajectories=18), "0" * 64, lambda *state: done.append(state))
    few = capture(model, plan, request(trajectories=3), "0" * 64)
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for step in range(2):
        np.testing.assert_allclose(found.samples[found.rows == step][:3], few.samples[few.rows == step], atol=1e-5)
    assert len(np.unique(found.samples[found.rows == 0], axis=0)) == 18


def test_classes_take_turns(make_model: MakeModel) -> None:
    model = make_model(image_size=8, num_classes=3)
    plan = compile_plan(SCHEDULES["cosine"], 2, prediction="v")
    found = capture(model, plan, request(trajectories=5, seed=2), "0" * 64)
    for step in range(2):
        rows = np.stack([plan_features(model, plan, index % 3)[step] for index in range(5)])
        np.testing.assert_array_equal(found.features[found.rows == step], rows)
    samples, _ = seen_by(model, plan, 2, 5, label=1)
    ours = found.samples[found.rows == 1]
    np.testing.assert_allclose(ours[[1, 4]], samples[1][[1, 4]], atol=1e-5)
    assert np.abs(ours[0] - samples[1][0]).max() > 1e-3


@pytest.mark.parametrize("coverage", ["uniform", "skew-normal"])
def test_a_coverage_keeps_its_part_of_every_step(
    coverage: Coverage, parent: Checkpoint, plan: Plan, calibration: Calibration
) -> None:
    wanted = request(coverage, 3, seed=calibration.header.request.seed)
    found = capture(parent.build(), plan, wanted, parent.header.digest)
    steps = covered_steps(wanted, len(plan))
    kept = [(row, index) for row in range(len(plan)) for index in range(3) if row in steps[index]]
    assert found.rows.tolist() == [row for row, _ in kept]
    for place, (row, index) in enumerate(kept):
        np.testing.assert_array_equal(found.samples[place], calibration.samples[calibration.rows == row][index])


def test_the_same_again(parent: Checkpoint, plan: Plan, recipe: Recipe, calibration: Calibration) -> None:
    again = capture(parent.build(), plan, recipe.calibration, parent.header.digest)
    assert again.header == calibration.header
    other = capture(parent.build(), plan, request(seed=5), parent.header.digest)
    assert other.header.digest != calibration.header.digest


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_trajectory_that_runs_away(value: float, make_model: MakeModel) -> None:
    model = make_model(image_size=8)
    with torch.no_grad():
        model.conv_out.bias[0] = value
    plan = compile_plan(SCHEDULES["cosine"], 3, prediction="v")
    with pytest.raises(EdgeSDError, match="not finite at step 1"):
        capture(model, plan, request(), "0" * 64)


# On disk


def test_it_comes_back(calibration: Calibration, parent: Checkpoint, plan: Plan, tmp_path: Path) -> None:
    calibration.save(tmp_path / "c.safetensors")
    found = load_calibration(tmp_path / "c.safetensors", parent.header.digest, plan)
    assert found.header == calibration.header
    for name in ("samples", "rows", "features"):
        np.testing.assert_array_equal(getattr(found, name), getattr(calibration, name))


def test_of_another_model_or_plan(calibration: Calibration, parent: Checkpoint, plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    calibration.save(path)
    with pytest.raises(UsageError, match="another model"):
        load_calibration(path, "1" * 64, plan)
    header = plan.header
    others = [(7, "dpmpp", None), (6, "ddim", None), (6, "dpmpp", "quadratic")]
    for steps, solver, spacing in others:
        other = compile_plan(header.noise_schedule, steps, solver=solver, prediction="v", spacing=spacing)
        with pytest.raises(UsageError, match="another plan"):
            load_calibration(path, parent.header.digest, other)


def test_a_file_that_is_damaged(calibration: Calibration, parent: Checkpoint, plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    calibration.save(path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-3] + b"\0\0\0", b"nothing"):
        path.write_bytes(damaged)
        with pytest.raises(EdgeSDError, match=r"c\.safetensors"):
            load_calibration(path, parent.header.digest, plan)
    path.unlink()
    with pytest.raises(EdgeSDError, match="does not exist"):
        load_calibration(path, parent.header.digest, plan)


def changed(calibration: Calibration, path: Path, **tensors: np.ndarray) -> Path:
    """A file that says of itself that it is whole."""
    values = {name: getattr(calibration, name) for name in ("samples", "rows", "features")} | tensors
    write_tensors(path, values, calibration.header.model_copy(update={"digest": tensors_digest(values)}))
    return path


def test_what_is_in_it_is_checked(calibration: Calibration, parent: Checkpoint, plan: Plan, tmp_path: Path) -> None:
    beyond, nan = calibration.rows.copy(), calibration.samples.copy()
    beyond[-1], nan[0, 0, 0, 0] = len(plan), np.nan
    for tensors, complaint in (({"rows": beyond}, "names a step"), ({"samples": nan}, "samples holds a NaN")):
        path = changed(calibration, tmp_path / "c.safetensors", **tensors)
        with pytest.raises(EdgeSDError, match=complaint):
            load_calibration(path, parent.header.digest, plan)


# Captured again only where it must be


def test_a_file_that_fits_is_taken(parent: Checkpoint, recipe: Recipe, calibration: Calibration, tmp_path: Path) -> None:
    path, said = tmp_path / "c.safetensors", []
    first = calibrate(parent, recipe, path, lambda *state: said.append(state[:3]))
    assert first.header == calibration.header
    assert said[-1] == ("calibration", 6, 6)
    before = path.read_bytes()
    said.clear()
    assert calibrate(parent, recipe, path, lambda *state: said.append(state)).header == first.header
    assert (path.read_bytes(), said) == (before, [])
    more = recipe.model_copy(update={"calibration": request(trajectories=2)})
    assert calibrate(parent, more, path, own=False).header == first.header  # somebody's own file
    assert len(calibrate(parent, more, path)) == 12
    with pytest.raises(EdgeSDError, match="does not exist"):
        calibrate(parent, recipe, tmp_path / "missing.safetensors", own=False)


def test_a_file_of_another_plan_is_never_overwritten(
    parent: Checkpoint, recipe: Recipe, calibration: Calibration, tmp_path: Path
) -> None:
    path = tmp_path / "c.safetensors"
    calibration.save(path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="another plan"):
        calibrate(parent, recipe.model_copy(update={"steps": 5}), path)
    assert path.read_bytes() == before


def test_a_calibration_is_a_value(calibration: Calibration) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        calibration.rows = calibration.rows  # type: ignore[misc]
