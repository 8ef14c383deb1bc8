"""Parameters and multiply-accumulates of a model, counted on the meta device (no memory, no arithmetic).

Published MACs of diffusion models mostly leave the two matrix products of attention out (the habit of thop and ptflops), so both
figures are given. Convolutions (the fixed wavelet filters too) and linear layers are counted; norms and activations are not.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edge_sd.models.blocks import DotProductAttention
from edge_sd.models.config import ModelConfig
from edge_sd.models.unet import SpectralUNet
from edge_sd.models.wavelets import DWT2, IDWT2


@dataclass(frozen=True)
class Count:
    """What one call of `forward` costs for one sample.

    Attributes:
        parameters: learnt ones, without a class embedding that only makes context (LDM counts it apart).
        macs: multiply-accumulates of convolutions and linear layers.
        temporal_macs: those among `macs` that make time features.
        attention_macs: those of q·kᵀ and of the product with v, on top of `macs`.
        weights_bytes: of the denoiser program's float32 weights.
    """

    parameters: int
    macs: int
    temporal_macs: int
    attention_macs: int
    weights_bytes: int


def count(config: ModelConfig) -> Count:
    """Count a configuration at its own image size, batch 1."""
    with torch.device("meta"):
        model = SpectralUNet(config).eval()
    macs = attention = temporal = 0
    of_time = set(model.temporal_net.modules())

    def on_layer(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal macs, attention, temporal
        if isinstance(module, DotProductAttention):
            q, k = inputs[0], inputs[1]
            attention += 2 * q.numel() * k.shape[-2]
        elif isinstance(module, nn.Linear):
            macs += output.numel() * module.in_features
            temporal += output.numel() * module.in_features * (module in of_time)
        elif isinstance(module, nn.Conv2d):
            macs += output.numel() * module.weight[0].numel()
        elif isinstance(module, (DWT2, IDWT2)):  # the inverse spreads each input over its taps
            macs += (output.numel() if isinstance(module, DWT2) else inputs[0].numel()) * module.weight[0].numel()

    for module in model.modules():
        module.register_forward_hook(on_layer)
    with torch.no_grad():
        x, t = torch.empty(1, *config.sample_shape, device="meta"), torch.empty(1, device="meta")
        y = torch.empty(1, dtype=torch.long, device="meta") if config.num_classes else None
        needs_context = config.context_dim is not None and config.class_conditioning != "context"
        context = torch.empty(1, config.context_tokens, config.context_dim or 0, device="meta") if needs_context else None
        model(x, t, y, context)
    time_parameters = sum(p.numel() for p in model.temporal_net.parameters())
    classes = model.temporal_net.classes.weight.numel() if config.class_conditioning == "context" else 0
    total = sum(p.numel() for p in model.parameters())
    return Count(total - classes, macs, temporal, attention, 4 * (total - time_parameters))
