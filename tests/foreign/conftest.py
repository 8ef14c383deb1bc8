"""diffusers' folders, small, with weights that hide nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

MakeTheirs = Callable[..., diffusers.UNet2DModel]

SMALL: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}


def stir(module: torch.nn.Module, seed: int = 0) -> None:
    """Move every bias and every norm away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 5)


@pytest.fixture(scope="session")
def make_theirs() -> MakeTheirs:
    """Changes to a small UNet2DModel → that model, in evaluation mode."""

    def make(**changes: Any) -> diffusers.UNet2DModel:
        torch.manual_seed(0)
        model = diffusers.UNet2DModel(**{**SMALL, **changes}).eval()
        stir(model)
        return model

    return make


@pytest.fixture
def folder(tmp_path: Path, make_theirs: MakeTheirs) -> Path:
    """The folder of a small UNet2DModel."""
    make_theirs().save_pretrained(tmp_path / "unet2d")
    return tmp_path / "unet2d"
