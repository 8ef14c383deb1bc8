"""Deployment rewrites: modules of the U-Net and of our decoder in the form that a runtime runs best, each exact up to rounding.

A rewrite replaces every module of one class by another that computes the same function. A target names those that pay for it
(measured, tests/benchmarks/export.py); a copy of the model is rewritten, the model itself stays as it is.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sd.models.attention_forms import (
    FoldedSelfAttention,
    FoldedSelfAttentionNHWC,
    MatmulAttention,
    TokenSelfAttention,
)
from edge_sd.models.autoencoder import LatentDecoder
from edge_sd.models.blocks import ConvUp, DotProductAttention, PixelUp, ResBlock, SelfAttention, constant
from edge_sd.models.gating import WaveletDown, WaveletUp
from edge_sd.models.wavelet_forms import (
    ButterflyWaveletUp,
    ButterflyWaveletUpNHWC,
    ConcatPixelUp,
    DepthwiseWaveletDown,
    FoldedHaarDecoder,
    FoldedHaarDecoderNHWC,
    JoinedWaveletUp,
    JoinedWaveletUpNHWC,
)


class SplitConv(nn.Module):
    """A convolution of two maps that were joined, as one of each, summed: they differ in range, so each gets grids of its own.

    Q-Diffusion (2302.04304), "shortcut splitting".

    Args:
        split: channels of the first map.
    """

    def __init__(self, source: nn.Conv2d, split: int) -> None:
        super().__init__()
        self.split, out = split, source.out_channels
        self.first, self.second = nn.Conv2d(split, out, 1), nn.Conv2d(source.in_channels - split, out, 1, bias=False)
        self.first.weight, self.second.weight = constant(source.weight[:, :split]), constant(source.weight[:, split:])
        self.first.bias = constant(source.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x[:, : self.split]) + self.second(x[:, self.split :])
        return out


def _split_skip(block: ResBlock) -> ResBlock:
    assert isinstance(block.skip, nn.Conv2d)  # noqa: S101 (`_has_joined_skip`)
    block.skip = SplitConv(block.skip, block.joined)
    return block


class PooledGroupNorm(nn.Module):
    """GroupNorm in operators that every delegate takes: spatial means, a grouped 1×1 convolution that averages over a group.

    The mean is subtracted before squares are taken: E[x²] − E[x]² would lose digits where the mean is large.
    """

    def __init__(self, source: nn.GroupNorm) -> None:
        super().__init__()
        C, self.groups, self.eps = source.num_channels, source.num_groups, source.eps
        self.average = constant(torch.full((C, C // self.groups, 1, 1), self.groups / C))
        self.weight = constant(source.weight.view(1, C, 1, 1)) if source.affine else None
        self.bias = constant(source.bias.view(1, C, 1, 1)) if source.affine else None

    def _group_mean(self, x: Tensor) -> Tensor:
        return F.conv2d(x.mean((2, 3), keepdim=True), self.average, groups=self.groups)

    def forward(self, x: Tensor) -> Tensor:
        centred = x - self._group_mean(x)
        scale = torch.rsqrt(self._group_mean(centred * centred) + self.eps)
        if self.weight is None or self.bias is None:
            return centred * scale
        return centred * (scale * self.weight) + self.bias


class InstanceGroupNorm(nn.Module):
    """GroupNorm as an instance norm of groups, and its affine map in one pass: a batch norm of mean 0 and variance 1."""

    mean: Tensor
    variance: Tensor

    def __init__(self, source: nn.GroupNorm) -> None:
        super().__init__()
        C, self.groups, self.eps = source.num_channels, source.num_groups, source.eps
        self.weight, self.bias = (constant(value) if source.affine else None for value in (source.weight, source.bias))
        self.register_buffer("mean", torch.zeros(C), persistent=False)
        self.register_buffer("variance", torch.ones(C), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = F.instance_norm(x.reshape(shape[0], self.groups, -1), eps=self.eps).reshape(shape)
        if self.weight is None:
            return x
        return F.batch_norm(x, self.mean, self.variance, self.weight, self.bias, eps=0.0)


class MatmulLayerNorm(nn.Module):
    """LayerNorm over the last dimension with its means as products with a constant vector."""

    def __init__(self, source: nn.LayerNorm) -> None:
        super().__init__()
        (C,), self.eps = source.normalized_shape, source.eps
        self.average = constant(torch.full((1, C), 1 / C))
        self.weight, self.bias = constant(source.weight), constant(source.bias)

    def forward(self, x: Tensor) -> Tensor:
        centred = x - F.linear(x, self.average)
        return centred * torch.rsqrt(F.linear(centred * centred, self.average) + self.eps) * self.weight + self.bias


@dataclass(frozen=True)
class Rewrite:
    """A named rewrite.

    Attributes:
        about: one line for reports.
        sources: the classes that it replaces.
        build: source module → its replacement.
        applies: whether it can replace this one.
    """

    name: str
    about: str
    sources: tuple[type[nn.Module], ...]
    build: Callable[..., nn.Module]
    applies: Callable[..., bool] = lambda source: True


def _is_haar(source: nn.Module) -> bool:
    return not isinstance(source, WaveletUp) or source.idwt.weight.shape[-1] == 2


def _has_joined_skip(source: ResBlock) -> bool:
    return bool(source.joined) and isinstance(source.skip, nn.Conv2d)


def _channels_last(kind: type[nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """Of what `kind` replaces, a `kind`; of what its parent class made already, the same in another layout."""

    def build(source: nn.Module) -> nn.Module:
        if type(source) not in kind.__bases__:
            return kind(source)
        relaid: nn.Module = kind.__new__(kind)
        relaid.__dict__.update(source.__dict__)
        return relaid

    return build


REWRITES: dict[str, Rewrite] = {
    rewrite.name: rewrite
    for rewrite in (
        Rewrite("folded-attention", "projections with norm, scale and biases folded in", (SelfAttention,), FoldedSelfAttention),
        Rewrite(
            "folded-attention-nhwc",
            "the same, channels last",
            (SelfAttention, FoldedSelfAttention),
            _channels_last(FoldedSelfAttentionNHWC),
        ),
        Rewrite("matmul-attention", "matmul–softmax–matmul, in blocks of queries", (DotProductAttention,), MatmulAttention),
        Rewrite("pooled-group-norm", "GroupNorm from spatial means", (nn.GroupNorm,), PooledGroupNorm),
        Rewrite("instance-group-norm", "GroupNorm as an instance norm of groups", (nn.GroupNorm,), InstanceGroupNorm),
        Rewrite("matmul-layer-norm", "LayerNorm from products with a constant", (nn.LayerNorm,), MatmulLayerNorm),
        Rewrite("depthwise-wavelet-down", "a fixed filter a subband, summed as it comes", (WaveletDown,), DepthwiseWaveletDown),
        Rewrite("butterfly-wavelet-up", "Haar's inverse as sums", (WaveletUp,), ButterflyWaveletUp, _is_haar),
        Rewrite(
            "butterfly-wavelet-up-nhwc",
            "the same, channels last",
            (WaveletUp, ButterflyWaveletUp),
            _channels_last(ButterflyWaveletUpNHWC),
            _is_haar,
        ),
        Rewrite(
            "token-attention", "linear layers on tokens, norm, scale and biases folded in", (SelfAttention,), TokenSelfAttention
        ),
        Rewrite("joined-wavelet-up", "Haar's inverse as sums, of one convolution", (WaveletUp,), JoinedWaveletUp, _is_haar),
        Rewrite(
            "joined-wavelet-up-nhwc",
            "the same, channels last",
            (WaveletUp, JoinedWaveletUp),
            _channels_last(JoinedWaveletUpNHWC),
            _is_haar,
        ),
        Rewrite("split-skip", "a skip's convolution in two halves", (ResBlock,), _split_skip, _has_joined_skip),
        Rewrite("folded-haar-up", "our decoder, Haar's inverse inside its convolutions", (LatentDecoder,), FoldedHaarDecoder),
        Rewrite("folded-haar-up-nhwc", "the same, channels last", (LatentDecoder,), FoldedHaarDecoderNHWC),
        Rewrite("concat-pixel-up", "pixel doubling by concatenation", (PixelUp, ConvUp), ConcatPixelUp),
    )
}


def rewritten(module: nn.Module, names: Iterable[str], where: Callable[[str], bool] = lambda name: True) -> nn.Module:
    """Return a copy of a module in evaluation mode with rewrites applied, in the order given; unchanged weights are shared.

    Args:
        where: of which modules, by their names; of all if left out.
    """
    memo = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    result = copy.deepcopy(module, memo).eval()
    for name in names:
        rewrite = REWRITES[name]
        for parent_name, parent in list(result.named_modules()):
            for child_name, child in list(parent.named_children()):
                wanted = where(f"{parent_name}.{child_name}".removeprefix("."))
                if wanted and type(child) in rewrite.sources and rewrite.applies(child):
                    setattr(parent, child_name, rewrite.build(child).eval())
    return result
