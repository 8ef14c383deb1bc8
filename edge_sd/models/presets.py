"""Named models: the nine published ones, with what their papers print, and small ones of our own."""

from dataclasses import dataclass
from typing import Literal

from edge_sd.models.config import ModelConfig

Prediction = Literal["epsilon", "v", "x0"]


@dataclass(frozen=True)
class Published:
    """What a paper prints: parameters in millions, GMACs (without attention's matrix products)."""

    parameters_m: float
    gmacs: float


@dataclass(frozen=True)
class Preset:
    """A model configuration with the process it is trained for."""

    config: ModelConfig
    schedule: str  # a name of `diffusion.SCHEDULES`
    prediction: Prediction
    about: str
    published: Published | None = None


def _family(
    about: str, base: dict[str, object], schedule: str, widths: dict[str, tuple[int, bool, Published]]
) -> dict[str, Preset]:
    return {
        name: Preset(
            ModelConfig.model_validate({**base, "width": width, "gating": gating}), schedule, "epsilon", about, published
        )
        for name, (width, gating, published) in widths.items()
    }


# Latent diffusion's configurations (2112.10752, configs/latent-diffusion of its repository).
_FFHQ: dict[str, object] = {}
_IMAGENET: dict[str, object] = {
    "multipliers": (1, 2, 3, 5),
    "head_channels": None,
    "heads": 1,
    "num_classes": 1001,
    "class_conditioning": "context",
    "context_dim": 512,
}
_CHURCH: dict[str, object] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "multipliers": (1, 2, 2, 4, 4),
    "attention": (1, 2, 4, 8),
    "head_channels": None,
    "heads": 8,
    "resample": "block",
    "scale_shift": True,
}


def _small(
    size: int, width: int, multipliers: tuple[int, ...], attention: tuple[int, ...], blocks: int, gating: bool, groups: int = 8
) -> ModelConfig:
    return ModelConfig(
        image_size=size, width=width, multipliers=multipliers, attention=attention, blocks=blocks, gating=gating,
        norm_groups=groups, head_channels=16,
    )  # fmt: skip


def _latent16(width: int, groups: int, *, gating: bool, **attention: int | None) -> ModelConfig:
    return ModelConfig.model_validate({
        "image_size": 16, "in_channels": 4, "out_channels": 4, "width": width, "multipliers": (1, 2, 3), "blocks": 1,
        "attention": (2, 4), "norm_groups": groups, "gating": gating, **attention,
    })  # fmt: skip


PRESETS: dict[str, Preset] = {
    **_family("FFHQ, CelebA-HQ, Bedroom (LDM-4)", _FFHQ, "ldm", {
        "ffhq-ldm": (224, False, Published(274.1, 96.0)),
        "ffhq-lite": (64, False, Published(22.4, 7.8)),
        "ffhq-sd": (64, True, Published(21.1, 6.7)),
    }),
    **_family("ImageNet, class-conditional (LDM-4)", _IMAGENET, "ldm", {
        "imagenet-ldm": (192, False, Published(400.9, 99.8)),
        "imagenet-lite": (64, False, Published(47.0, 11.1)),
        "imagenet-sd": (64, True, Published(45.4, 9.9)),
    }),
    **_family("LSUN Church (LDM-8)", _CHURCH, "ldm-church", {
        "church-ldm": (192, False, Published(295.0, 18.6)),
        "church-lite": (64, False, Published(32.8, 2.1)),
        "church-sd": (64, True, Published(33.8, 2.1)),
    }),
    "tiny16": Preset(_small(16, 24, (1, 2, 4), (4,), 1, True), "cosine", "v", "16 px, trains in minutes on a CPU"),
    "tiny16-teacher": Preset(_small(16, 32, (1, 2, 4), (4,), 1, False), "cosine", "v", "16 px, tiny16's teacher"),
    # Lite and SD at one budget: what gating saves in MACs is spent on width.
    "latent16-teacher": Preset(_latent16(48, 8, gating=False, head_channels=16), "cosine", "v", "latent16's teacher"),
    "latent16-lite": Preset(_latent16(32, 8, gating=False, head_channels=None, heads=1), "cosine", "v", "16×16 latents, Lite"),
    "latent16": Preset(_latent16(35, 7, gating=True, head_channels=None, heads=1), "cosine", "v", "16×16 latents, as of 64 px"),
    "latent16-slim": Preset(
        _latent16(32, 4, gating=True, head_channels=None, heads=1), "cosine", "v", "16×16 latents, for --slimmable"
    ),
    "small32": Preset(_small(32, 64, (1, 2, 3), (2, 4), 2, True), "cosine", "v", "32 px"),
    "small64": Preset(_small(64, 48, (1, 2, 3, 4), (4, 8), 2, True), "cosine", "v", "64 px"),
    "small128": Preset(_small(128, 32, (1, 2, 3, 4, 6), (8, 16), 2, True), "cosine", "v", "128 px"),
}  # fmt: skip
