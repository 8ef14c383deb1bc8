"""The presets against what their papers print, and the counting itself against torch's own counter and by hand."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edge_sd.diffusion import SCHEDULES
from edge_sd.models import PRESETS, ModelConfig
from edge_sd.models.count import Count, count
from edge_sd.models.unet import SpectralUNet

MakeModel = Callable[..., SpectralUNet]

PUBLISHED = {name: preset.published for name, preset in PRESETS.items() if preset.published is not None}


@cache
def counted_preset(name: str) -> Count:
    return count(PRESETS[name].config)


def test_nine_models_are_published() -> None:
    assert set(PUBLISHED) == {f"{data}-{kind}" for data in ("ffhq", "imagenet", "church") for kind in ("ldm", "lite", "sd")}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if not name.endswith("-sd")])
def test_ldm_and_lite_are_the_published_models_to_the_printed_digit(name: str) -> None:
    counted = counted_preset(name)
    assert round(counted.parameters / 1e6, 1) == PUBLISHED[name].parameters_m
    assert round(counted.macs / 1e9, 1) == PUBLISHED[name].gmacs


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.endswith("-sd")])
def test_spectral_diffusion_comes_close_to_the_published_models(name: str) -> None:
    """The paper leaves the gate's network open, so that only its order of size can be met."""
    tolerance = 0.04 if name.startswith("church") else 0.025
    counted = counted_preset(name)
    assert counted.parameters / 1e6 == pytest.approx(PUBLISHED[name].parameters_m, rel=tolerance)
    assert counted.macs / 1e9 == pytest.approx(PUBLISHED[name].gmacs, rel=tolerance)


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_names_a_schedule_and_can_be_counted(name: str) -> None:
    preset = PRESETS[name]
    assert preset.schedule in SCHEDULES
    counted = counted_preset(name)
    assert min(counted.parameters, counted.macs, counted.attention_macs, counted.weights_bytes) > 0


def test_a_student_is_smaller_than_its_teacher() -> None:
    student, teacher = counted_preset("tiny16"), counted_preset("tiny16-teacher")
    assert student.parameters < teacher.parameters
    assert student.macs < teacher.macs


@pytest.mark.parametrize(
    "changes",
    [
        {"gating": False},
        {},
        {"gating": False, "resample": "block", "scale_shift": True},
        {"resample": "block"},
        {"num_classes": 5, "class_conditioning": "context", "context_dim": 6},
        {"context_dim": 6, "context_tokens": 3, "transformer_depth": 2},
        {"num_classes": 5, "context_dim": 6},
        {"multipliers": (1, 2, 3), "blocks": 2, "attention": (1, 4), "in_channels": 4, "out_channels": 2},
    ],
)
def test_counting_is_what_torch_counts(changes: dict[str, Any], make_model: MakeModel) -> None:
    """On a model that really runs; torch counts two operations for each multiply-accumulate."""
    model = make_model(**changes)
    config = model.config
    x, t = torch.zeros(1, *config.sample_shape), torch.zeros(1)
    y = torch.zeros(1, dtype=torch.long) if config.num_classes else None
    context = torch.zeros(1, config.context_tokens, config.context_dim or 1) if config.class_conditioning == "add" else None
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(x, t, y, context if config.context_dim else None)
    counted = count(config)
    assert counter.get_total_flops() == 2 * (counted.macs + counted.attention_macs)

    weights = model.state_dict()
    classes = config.num_classes * config.context_dim if config.class_conditioning == "context" else 0
    assert counted.parameters == sum(w.numel() for w in weights.values()) - classes
    assert counted.weights_bytes == sum(4 * w.numel() for name, w in weights.items() if not name.startswith("temporal_net."))


def test_a_model_of_one_level_counted_by_hand() -> None:
    config = ModelConfig(image_size=8, width=8, multipliers=(1,), blocks=1, attention=(), head_channels=8, norm_groups=4)
    norm, conv = 8 + 8, 8 * 8 * 9 + 8
    block = norm + conv + norm + conv
    wide = 16 + 16 + (16 * 8 * 9 + 8) + norm + conv + (16 * 8 + 8)  # its input is joined with a skip's: 16 channels
    attention = norm + (8 * 24 + 24) + (8 * 8 + 8)
    ends = (3 * 8 * 9 + 8) + norm + (8 * 3 * 9 + 3)
    rows = 5 * 8  # one block down, two in the middle, two up
    temporal = (8 * 32 + 32) + (32 * 32 + 32) + (32 * rows + rows)

    cells = 8 * 8
    macs = cells * (3 * 8 * 9 + 3 * 2 * 8 * 8 * 9 + 2 * (16 * 8 * 9 + 8 * 8 * 9 + 16 * 8) + 8 * 24 + 8 * 8 + 8 * 3 * 9)
    macs += 8 * 32 + 32 * 32 + 32 * rows

    counted = count(config)
    assert counted.parameters == ends + 3 * block + 2 * wide + attention + temporal
    assert counted.macs == macs
    assert counted.attention_macs == 2 * cells * cells * 8
    assert counted.weights_bytes == 4 * (counted.parameters - temporal)
