"""What a plan's score is: against data whose end is known, against the evaluation's own distance, and with honest errors."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sd.diffusion import compile_plan, gaussian_batch
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation.distances import kernel_distance
from edge_sd.evaluation.features import wrap_features
from edge_sd.search.objectives import Score, find_objective, objectives
from edge_sd.search.objectives.kid import KernelDistance, Within, load_real, mmd, save_real
from edge_sd.search.objectives.trajectory import Trajectory
from gaussian_data import SCHEDULE, SHAPE, exact_end, subject

PLAN = compile_plan(SCHEDULE, 6, solver="ddim", prediction="v")


def pooled(images: torch.Tensor) -> torch.Tensor:
    """Three features of an image of two channels made RGB."""
    return images.flatten(2).std(2)


def rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(difference**2)))


# Distance to the fine-grained trajectory


def test_the_fine_trajectory_ends_where_the_closed_form_does() -> None:
    exact = exact_end(gaussian_batch(3, range(32), -1, SHAPE))
    assert rms(Trajectory(subject()).ends(3, 0) - exact) < 2e-3
    assert rms(Trajectory(subject(), fine=400).ends(3, 0) - exact) < 3e-4


def test_the_score_is_the_distance_to_the_closed_form() -> None:
    given = subject()
    score = Trajectory(given).score(PLAN, seed=3, count=40)
    samples = given.draw(PLAN, 3, range(40))
    errors = np.mean((samples - exact_end(gaussian_batch(3, range(40), -1, SHAPE))) ** 2, axis=(1, 2, 3))
    assert score.value == pytest.approx(np.sqrt(errors.mean()), rel=0.02)
    # By the delta method: the error of a mean, through the square root.
    assert score.standard_error == pytest.approx(errors.std(ddof=1) / np.sqrt(40) / (2 * np.sqrt(errors.mean())), rel=0.1)


def test_a_sample_depends_on_its_seed_and_index_alone() -> None:
    given = subject()
    whole = given.draw(PLAN, 5, range(40))
    assert np.array_equal(given.draw(PLAN, 5, range(37, 39)), whole[37:39])
    assert not np.array_equal(given.draw(PLAN, 6, range(37, 39)), whole[37:39])


def test_classes_are_drawn_in_turn() -> None:
    ends = Trajectory(subject(2)).ends(0, 0)
    noise = gaussian_batch(0, range(32), -1, SHAPE)
    assert rms(ends[::2] - exact_end(noise[::2])) < 2e-3
    assert rms(ends[1::2] - exact_end(noise[1::2], 0.5)) < 2e-3


def test_ends_are_kept_and_what_is_damaged_is_drawn_again(tmp_path: Path) -> None:
    first = Trajectory(subject(), cache=tmp_path)
    first.prepare(1, range(40))
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 2
    assert np.array_equal(Trajectory(subject(), cache=tmp_path).ends(1, 32), first.ends(1, 32))
    whole = kept[0].read_bytes()
    kept[0].write_bytes(whole[:-8] + b"\0" * 8)
    assert np.array_equal(Trajectory(subject(), cache=tmp_path).ends(1, 0), first.ends(1, 0))
    assert kept[0].read_bytes() == whole
    Trajectory(subject(), fine=50, cache=tmp_path).ends(1, 0)  # of another trajectory
    assert len(list(tmp_path.iterdir())) == 3


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(UsageError, match="1 samples have no standard error"):
        Trajectory(subject()).score(PLAN, seed=0, count=1)
    with pytest.raises(UsageError, match="adds noise"):
        Trajectory(subject(), solver="ddpm")
    with pytest.raises(UsageError, match="unknown objective 'fid'"):
        find_objective("fid")
    with pytest.raises(UsageError, match="needs real images"):
        KernelDistance.open(subject(), {})
    broken = subject()
    with torch.no_grad():
        broken.model.widths.fill_(torch.nan)  # type: ignore[union-attr,operator]
    with pytest.raises(EdgeSDError, match="NaN"):
        Trajectory(broken).score(PLAN, seed=0, count=4)
    assert set(objectives()) == {"kid", "trajectory"}


# Kernel distance


def test_the_kernel_distance_is_the_evaluations_own() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 7)), rng.normal(0.2, 1.1, size=(60, 7))
    score = mmd(Within(x), Within(y))
    theirs = kernel_distance(x, y, subsets=1, subset_size=60)
    assert score.value == pytest.approx(theirs.value, rel=1e-9)
    # A jackknife over every image in place of 20 groups.
    assert theirs.standard_error is not None
    assert score.standard_error == pytest.approx(theirs.standard_error, rel=0.35)


def test_its_error_is_that_of_another_draw() -> None:
    rng = np.random.default_rng(1)
    scores = [mmd(Within(rng.normal(size=(50, 4))), Within(rng.normal(0.5, 1, size=(40, 4)))) for _ in range(200)]
    assert np.mean([score.standard_error for score in scores]) == pytest.approx(np.std([s.value for s in scores]), rel=0.2)


def test_the_error_of_a_difference_is_that_of_paired_draws() -> None:
    rng = np.random.default_rng(2)
    differences, errors = [], []
    for _ in range(200):
        real, noise = Within(rng.normal(size=(50, 4))), rng.normal(size=(40, 4))
        difference, error = mmd(real, Within(noise + 0.5)).minus(mmd(real, Within(noise + 0.45)))
        differences.append(difference)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(differences), rel=0.2)


def test_one_item_left_out_is_the_distance_without_it() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(8, 3))
    real, generated = Within(x), Within(y)
    assert generated.means_without_one()[2] == pytest.approx(Within(np.delete(y, 2, 0)).mean())
    without = [mmd(real, Within(np.delete(y, i, 0))).value for i in range(8)]
    of_real = [mmd(Within(np.delete(x, i, 0)), generated).value for i in range(9)]
    expected = Score.jackknife(0.0, np.array(without), np.array(of_real))
    assert np.allclose(mmd(real, generated).deviations, expected.deviations, rtol=1e-9, atol=1e-12)


def test_samples_are_compared_as_pictures(tmp_path: Path) -> None:
    class ToGrey(torch.nn.Module):
        def forward(self, latent: torch.Tensor) -> torch.Tensor:
            return latent.mean(1, keepdim=True)

    given = subject()
    given = type(given)(given.model, given.noise_schedule, given.prediction, ToGrey())
    features = wrap_features(pooled, "Pooled", "0" * 64)
    rng = np.random.default_rng(0)
    save_real(tmp_path / "real.safetensors", rng.uniform(0, 1, (30, 3)).astype(np.float32), features, "nothing", "1" * 64)
    header, real = load_real(tmp_path / "real.safetensors", features)
    assert header.features == "Pooled"
    objective = KernelDistance(given, features, real)
    score = objective.score(PLAN, seed=0, count=20)
    assert np.isfinite([score.value, score.standard_error]).all()
    assert len(score.deviations) == 50
    with pytest.raises(UsageError, match="too few"):
        objective.score(PLAN, seed=0, count=2)
    with pytest.raises(EdgeSDError, match="holds features of Pooled"):
        load_real(tmp_path / "real.safetensors", wrap_features(pooled, "Pooled", "2" * 64))
