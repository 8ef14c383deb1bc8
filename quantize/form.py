"""The form that a U-Net is quantized in: that of its deployment, so that what is rounded is what is stored.

Rewrites that change weights (norms and scales folded into attention, a skip's convolution in halves, …) come first. A target
may still change the layout of the result, never a number in it.
"""

import copy

from torch import nn

from edge_sd.models.rewrites import rewritten
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize.layers import quantizable

REWRITES = ("token-attention", "matmul-attention", "depthwise-wavelet-down", "joined-wavelet-up", "token-skip")


def quantizable_form(model: SpectralUNet) -> SpectralUNet:
    """A copy of a model in that form, nothing of it quantized yet; it denoises as the model does, up to rounding."""
    form = rewritten(copy.deepcopy(model).requires_grad_(False), REWRITES)
    assert isinstance(form, SpectralUNet)  # noqa: S101 (a copy of it)
    temporal = form.temporal_net
    form.temporal_net = nn.Identity()  # the plan's business: it is never quantized
    quantizable(form)
    form.temporal_net = temporal
    return form
