"""Sandwich training: what each pass is of, and that a run of it is like any other."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sd.data import ImageData
from edge_sd.diffusion import SCHEDULES
from edge_sd.errors import UsageError
from edge_sd.models import ModelConfig
from edge_sd.models.slim import SlimUNet
from edge_sd.models.unet import SpectralUNet
from edge_sd.training import Progress, TrainConfig, fit
from edge_sd.training.samples import samples_of
from edge_sd.training.slimmable import SlimmableLearner

SCHEDULE = SCHEDULES["cosine"]
CONFIG = TrainConfig(steps=6, batch_size=4, save_every=2, sample_every=0, precision="fp32", warmup=0)


@pytest.fixture
def config(tiny_config: ModelConfig) -> ModelConfig:
    groups = tiny_config.norm_groups
    return ModelConfig.model_validate({
        **tiny_config.model_dump(), "width": 4 * groups, "slim_widths": (groups, 2 * groups, 3 * groups),
        "head_channels": None, "heads": 1,
    })  # fmt: skip


def learner_of(config: ModelConfig) -> SlimmableLearner:
    torch.manual_seed(0)
    model = SpectralUNet(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return SlimmableLearner(model, SCHEDULE, "v")


def test_the_terms_are_the_losses_of_the_widths(config: ModelConfig, tiny_data: ImageData) -> None:
    learner = learner_of(config)
    samples = samples_of(tiny_data)
    seen = set()
    for step in range(8):
        x0, noise, t, between = learner.draw(samples, CONFIG, step, slice(None))
        terms = learner(x0, noise, t, between)
        middle = config.slim_widths[int(between[0])]
        seen.add(middle)
        widths = (config.width, config.slim_widths[0], middle)
        for index, (name, width) in enumerate(zip(("full", "smallest", "between"), widths, strict=True)):
            network = learner.model if width == config.width else SlimUNet(learner.model, width).load(learner.model)
            alpha_bar = torch.from_numpy(SCHEDULE.alpha_bar(t[:, index].numpy())).float()[:, None, None, None]
            alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
            x_t, target = alpha * x0 + sigma * noise[:, index], alpha * noise[:, index] - sigma * x0
            out = network.eval().denoise(x_t, learner.model.temporal(t[:, index].float()))
            torch.testing.assert_close(terms[name], (out - target).square().mean(), rtol=1e-4, atol=1e-6)
    assert seen == set(config.slim_widths[1:])


def test_passes_are_drawn_apart_and_shares_add_up(config: ModelConfig, tiny_data: ImageData) -> None:
    learner, samples = learner_of(config), samples_of(tiny_data)
    x0, noise, t, between = learner.draw(samples, CONFIG, 3, slice(None))
    assert noise.shape == (4, 3, *x0.shape[1:])
    assert t.shape == (4, 3)
    assert len(np.unique(noise.numpy())) > 0.9 * noise.numel()
    assert not torch.equal(t[:, 0], t[:, 1])
    halves = [learner.draw(samples, CONFIG, 3, share) for share in (slice(0, 2), slice(2, 4))]
    for whole, *parts in zip((x0, noise, t, between), *halves, strict=True):
        assert torch.equal(whole, torch.cat(parts))


def test_with_one_slim_width_there_are_two_passes(config: ModelConfig, tiny_data: ImageData) -> None:
    learner = learner_of(config.model_copy(update={"slim_widths": config.slim_widths[:1]}))
    terms = learner(*learner.draw(samples_of(tiny_data), CONFIG, 0, slice(None)))
    assert set(terms) == {"full", "smallest"}


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
    first, last = [], []

    def watch(progress: Progress) -> None:
        (first if progress.step <= 20 else last).append(progress.terms)

    fit(config, SCHEDULE, "v", tiny_data, CONFIG.model_copy(update={"steps": 120, "batch_size": 8}), tmp_path, observe=watch)
    for name in ("full", "smallest", "between"):
        assert np.mean([terms[name] for terms in last[-20:]]) < 0.9 * np.mean([terms[name] for terms in first])


def test_a_model_without_slim_widths_is_refused(tiny_config: ModelConfig) -> None:
    with pytest.raises(UsageError, match="no slim widths"):
        SlimmableLearner(SpectralUNet(tiny_config), SCHEDULE, "v")
