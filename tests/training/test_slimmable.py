"""Sandwich training: what each pass is of, and that a run of it is like any other."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edge_sd.data import ImageData
from edge_sd.diffusion import SCHEDULES, Plan, compile_plan
from edge_sd.errors import UsageError
from edge_sd.models import ModelConfig
from edge_sd.models.slim import SlimUNet
from edge_sd.models.unet import SpectralUNet
from edge_sd.training import Progress, TrainConfig, fit
from edge_sd.training.samples import samples_of
from edge_sd.training.slimmable import SlimmableLearner, timesteps_of_widths

SCHEDULE = SCHEDULES["cosine"]
CONFIG = TrainConfig(steps=6, batch_size=4, save_every=2, sample_every=0, precision="fp32", warmup=0)


@pytest.fixture
def config(tiny_config: ModelConfig) -> ModelConfig:
    groups = tiny_config.norm_groups
    return ModelConfig.model_validate({
        **tiny_config.model_dump(), "width": 4 * groups, "slim_widths": (groups, 2 * groups, 3 * groups),
        "head_channels": None, "heads": 1,
    })  # fmt: skip


def learner_of(config: ModelConfig, plan: Plan | None = None) -> SlimmableLearner:
    torch.manual_seed(0)
    model = SpectralUNet(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return SlimmableLearner(model, SCHEDULE, "v", plan)


def plan_of(config: ModelConfig, *widths: int) -> Plan:
    return compile_plan(SCHEDULE, len(widths), prediction="v").with_widths(widths)


def outputs(learner: SlimmableLearner, width: int, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """What the network of a width says, computed by itself, and the target."""
    network = learner.model if width == learner.model.config.width else SlimUNet(learner.model, width).load(learner.model)
    alpha_bar = torch.from_numpy(SCHEDULE.alpha_bar(t.numpy())).float()[:, None, None, None]
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return network.eval().denoise(alpha * x0 + sigma * noise, learner.model.temporal(t.float())), alpha * noise - sigma * x0


def test_the_full_width_learns_the_target_and_narrow_ones_what_it_says(config: ModelConfig, tiny_data: ImageData) -> None:
    learner, samples, seen = learner_of(config), samples_of(tiny_data), set()
    for step in range(8):
        x0, noise, t, between = learner.draw(samples, CONFIG, step, slice(None))
        terms = learner(x0, noise, t, between)
        full, target = outputs(learner, config.width, x0, noise, t)
        torch.testing.assert_close(terms.pop("full"), (full - target).square().mean(), rtol=1e-4, atol=1e-6)
        drawn = config.slim_widths[int(between[0])]
        assert set(terms) == {f"width {config.slim_widths[0]}", f"width {drawn}"}
        seen.add(drawn)
        for width in (config.slim_widths[0], drawn):
            out, _ = outputs(learner, width, x0, noise, t)
            torch.testing.assert_close(terms[f"width {width}"], (out - full).square().mean(), rtol=1e-4, atol=1e-6)
    assert seen == set(config.slim_widths[1:])


def test_the_full_width_is_not_taught_by_narrow_ones(config: ModelConfig, tiny_data: ImageData) -> None:
    """What no narrow network has learns from the target alone."""
    learner = learner_of(config)
    terms = learner(*learner.draw(samples_of(tiny_data), CONFIG, 0, slice(None)))
    sum(value for name, value in terms.items() if name != "full").backward()  # type: ignore[union-attr]
    first = learner.model.get_parameter("conv_in.weight").grad
    assert first is not None
    widest = config.slim_widths[-1]
    assert first[: config.slim_widths[0]].abs().min() > 0
    assert not first[widest:].any()


def test_shares_of_a_batch_add_up(config: ModelConfig, tiny_data: ImageData) -> None:
    plan = plan_of(config, config.slim_widths[0], config.slim_widths[1], config.width)
    for learner in (learner_of(config), learner_of(config, plan)):
        samples, eight = samples_of(tiny_data), CONFIG.model_copy(update={"batch_size": 8})
        whole = learner.draw(samples, eight, 3, slice(None))
        halves = [learner.draw(samples, eight, 3, share) for share in (slice(0, 4), slice(4, 8))]
        for value, *parts in zip(whole, *halves, strict=True):
            assert torch.equal(value, torch.cat(parts))
        terms, both = learner(*whole), [learner(*half) for half in halves]
        for name, value in terms.items():
            torch.testing.assert_close(value, sum(half.get(name, torch.zeros(())) for half in both) / 2, rtol=1e-4, atol=1e-6)


def test_a_plan_says_of_which_timesteps_a_width_learns(config: ModelConfig, tiny_data: ImageData) -> None:
    small, middle, _ = config.slim_widths
    plan = plan_of(config, small, middle, middle, config.width)  # at timesteps 999, 749, 499 and 249
    called = timesteps_of_widths(plan, SCHEDULE.timesteps)
    assert [int(called[width].sum()) for width in (small, middle, config.width)] == [126, 500, 374]
    assert (called[small].nonzero()[0] > 873).all()
    learner = learner_of(config, plan)
    assert learner.widths == (small, middle)
    seen = set()
    for step in range(6):
        x0, noise, t, between = learner.draw(samples_of(tiny_data), CONFIG, step, slice(None))
        terms = learner(x0, noise, t, between)
        full, _ = outputs(learner, config.width, x0, noise, t)
        for width in (small, middle):
            chosen = torch.from_numpy(called[width])[t]
            assert (f"width {width}" in terms) == bool(chosen.any())
            if chosen.any():
                seen.add(width)
                out, _ = outputs(learner, width, x0, noise, t)
                apart = (out - full).square().mean(dim=(1, 2, 3))[chosen].sum() / len(t) / called[width].mean()
                torch.testing.assert_close(terms[f"width {width}"], apart, rtol=1e-4, atol=1e-6)
    assert seen == {small, middle}


def test_with_one_slim_width_there_are_two_passes(config: ModelConfig, tiny_data: ImageData) -> None:
    learner = learner_of(config.model_copy(update={"slim_widths": config.slim_widths[:1]}))
    terms = learner(*learner.draw(samples_of(tiny_data), CONFIG, 0, slice(None)))
    assert set(terms) == {"full", f"width {config.slim_widths[0]}"}


def test_a_run_may_begin_with_weights_of_one_width(config: ModelConfig, tiny_data: ImageData, tmp_path: Path) -> None:
    one = config.model_copy(update={"slim_widths": ()})
    start = fit(one, SCHEDULE, "v", tiny_data, CONFIG, tmp_path / "one")
    still = CONFIG.model_copy(update={"steps": 1, "learning_rate": 1e-12, "weight_decay": 0.0})
    found = fit(config, SCHEDULE, "v", tiny_data, still, tmp_path / "slim", start=start)
    assert found.header.model.slim_widths == config.slim_widths
    assert found.header.provenance.parents["start"] == start.header.digest
    for name, value in start.weights.items():
        np.testing.assert_allclose(found.weights[name], value, atol=1e-6)


def test_a_run_that_was_cut_goes_on_exactly(config: ModelConfig, tiny_data: ImageData, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    fit(config, SCHEDULE, "v", tiny_data, CONFIG, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(config, SCHEDULE, "v", tiny_data, CONFIG, tmp_path / "cut", observe=stop)
    checkpoint = fit(config, SCHEDULE, "v", tiny_data, CONFIG, tmp_path / "cut")
    written = [(tmp_path / run / "checkpoint.safetensors").read_bytes() for run in ("whole", "cut")]
    assert written[0] == written[1]
    assert checkpoint.header.model.slim_widths == config.slim_widths
    assert checkpoint.build((config.width, config.slim_widths[0])).widths == (config.width, config.slim_widths[0])


def test_every_width_learns(config: ModelConfig, tiny_data: ImageData, tmp_path: Path) -> None:
    """To predict better than nothing at all, which is what all of them begin with."""
    settings = CONFIG.model_copy(update={"steps": 120, "batch_size": 8})
    found = fit(config, SCHEDULE, "v", tiny_data, settings, tmp_path).build()
    learner = SlimmableLearner(found, SCHEDULE, "v")
    x0, noise, t, _ = learner.draw(samples_of(tiny_data), CONFIG.model_copy(update={"batch_size": 64}), 1000, slice(None))
    for width in (*config.slim_widths, config.width):
        out, target = outputs(learner, width, x0, noise, t)
        assert (out - target).square().mean() < 0.9 * target.square().mean()


def test_a_model_without_slim_widths_is_refused(tiny_config: ModelConfig) -> None:
    with pytest.raises(UsageError, match="no slim widths"):
        SlimmableLearner(SpectralUNet(tiny_config), SCHEDULE, "v")


def test_a_plan_that_does_not_fit_is_refused(config: ModelConfig) -> None:
    with pytest.raises(UsageError, match="one width for all steps"):
        learner_of(config, compile_plan(SCHEDULE, 4, prediction="v"))
    with pytest.raises(UsageError, match=rf"calls widths \[{config.width + 8}\]"):
        learner_of(config, plan_of(config, config.width + 8, config.width + 8))
