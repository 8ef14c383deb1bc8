"""Small networks of every kind that can be made narrower or wider."""

import torch
from torch import nn

from edge_sd.models import ModelConfig
from edge_sd.models.unet import SpectralUNet

PLAIN = ModelConfig(
    image_size=8, width=16, multipliers=(1, 2), blocks=1, attention=(1,), head_channels=8, norm_groups=4, slim_widths=(8,)
)
GATED = PLAIN.model_copy(update={"gating": True, "head_channels": None, "heads": 2})
CHURCH = GATED.model_copy(update={"resample": "block", "scale_shift": True, "head_channels": None, "heads": 2})
CONTEXT = CHURCH.model_copy(
    update={"context_dim": 6, "context_tokens": 2, "num_classes": 3, "class_conditioning": "context", "gating": False}
)
CONFIGS = {"plain": PLAIN, "gated": GATED, "church": CHURCH, "context": CONTEXT}


def network(config: ModelConfig) -> SpectralUNet:
    """With weights that are nowhere zero."""
    torch.manual_seed(0)
    model = SpectralUNet(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model
