"""The form that a U-Net is quantized in: that of its deployment, so that what is rounded is what is stored.

Rewrites that change weights (norms and scales folded into attention, a skip's convolution in halves, …) come first. A target
may still change the layout of the result, never a number in it.
"""

import copy

import torch
from torch import Tensor, nn

from edge_sd.models.blocks import SelfAttention
from edge_sd.models.config import ModelConfig
from edge_sd.models.rewrites import rewritten
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize.layers import quantizable

REWRITES = ("token-attention", "matmul-attention", "depthwise-wavelet-down", "joined-wavelet-up", "split-skip")
# Up to so many tokens attention takes less time in float than grids and changes of layout would cost.
FEW_TOKENS = 64


def quantizable_form(model: SpectralUNet) -> SpectralUNet:
    """A copy of a model in that form, nothing of it quantized yet; it denoises as the model does, up to rounding."""
    few = {name for name, tokens in attention_tokens(model.config).items() if tokens <= FEW_TOKENS}
    form = rewritten(copy.deepcopy(model).requires_grad_(False), ("folded-attention",), lambda name: name in few)
    form = rewritten(form, REWRITES)
    assert isinstance(form, SpectralUNet)  # noqa: S101 (a copy of it)
    temporal = form.temporal_net
    form.add_module("temporal_net", nn.Identity())  # the plan's business: it is never quantized
    quantizable(form)
    form.temporal_net = temporal
    return form.eval()


def attention_tokens(config: ModelConfig) -> dict[str, int]:
    """How many cells each self-attention of a model looks at, by its name."""
    tokens: dict[str, int] = {}
    with torch.device("meta"):
        model = SpectralUNet(config)
        for name, part in model.named_modules():
            if isinstance(part, SelfAttention):

                def seen(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                    tokens[name] = inputs[0].shape[-2] * inputs[0].shape[-1]

                part.register_forward_pre_hook(seen)
        model.denoise(torch.zeros(1, *config.sample_shape), torch.zeros(1, model.feature_width))
    return tokens
