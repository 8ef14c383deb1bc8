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

from edge_sd.models.autoencoder import LatentDecoder
from edge_sd.models.blocks import ConvUp, DotProductAttention, PixelUp, ResBlock, SelfAttention
from edge_sd.models.gating import SubbandGate, WaveletDown, WaveletUp
from edge_sd.models.wavelets import IDWT2, SUBBANDS, wrap

# Queries that attend at a time: the scores of a 32×32 map are 16 MB at once, a quarter of that in blocks.
QUERY_BLOCK = 256


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone().contiguous(), requires_grad=False)


class Attend(nn.Module):
    """Attention of scaled queries q (B, N, d) to keys k (B, d, M) and values v (B, M, d), block by block; (B, N, d).

    Attributes:
        queries, keys, values, probabilities: what these go through before they are multiplied; places to quantize them.
    """

    PLACES = ("queries", "keys", "values", "probabilities")

    def __init__(self) -> None:
        super().__init__()
        self.queries: nn.Module = nn.Identity()
        self.keys: nn.Module = nn.Identity()
        self.values: nn.Module = nn.Identity()
        self.probabilities: nn.Module = nn.Identity()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = q.shape[1]
        q, k, v = self.queries(q), self.keys(k), self.values(v)
        blocks = [q[:, start : start + QUERY_BLOCK] for start in range(0, tokens, QUERY_BLOCK)] if tokens > QUERY_BLOCK else [q]
        attended = [torch.bmm(self.probabilities(torch.softmax(torch.bmm(block, k), dim=-1)), v) for block in blocks]
        return attended[0] if len(attended) == 1 else torch.cat(attended, dim=1)


class MatmulAttention(nn.Module):
    """`DotProductAttention` as matmul–softmax–matmul: no mask logic, and the scores of one block of queries at a time."""

    def __init__(self, _: DotProductAttention) -> None:
        super().__init__()
        self.attend = Attend()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, heads, _, d = q.shape
        q, k, v = (y.flatten(0, 1) for y in (q * d**-0.5, k, v))
        out: Tensor = self.attend(q, k.transpose(1, 2), v).unflatten(0, (B, heads))
        return out


class FoldedSelfAttention(nn.Module):
    """`SelfAttention` with all that is constant folded into its weights.

    Three projections in place of one that has to be split. With the norm's affine γ, β and W = [W_q, W_k, W_v]:
    W' = W·diag(γ), b' = b + W·β, and W_q, b_q are scaled by 1/√d. A key's bias adds the same to all scores of a query, which
    softmax removes; a value's bias passes through the weighted mean and joins the output's: b_o + W_o·b_v.
    """

    def __init__(self, source: SelfAttention) -> None:
        super().__init__()
        self.heads, self.groups, self.eps = source.heads, source.norm.num_groups, source.norm.eps
        C = source.norm.num_channels
        weight, bias = source.qkv.weight.detach().view(3, C, C), source.qkv.bias.detach().view(3, C)  # type: ignore[union-attr]
        bias = bias + weight @ source.norm.bias
        weight = weight * source.norm.weight
        scale = (C // self.heads) ** -0.5
        self.norm = nn.GroupNorm(self.groups, C, self.eps, affine=False)
        self.attend = Attend()
        self.q, self.k, self.v, self.out = (nn.Conv2d(C, C, 1, bias=has_bias) for has_bias in (True, False, False, True))
        out_weight, out_bias = source.out.weight.detach(), source.out.bias.detach()  # type: ignore[union-attr]
        for layer, value in ((self.q, weight[0] * scale), (self.k, weight[1]), (self.v, weight[2]), (self.out, out_weight)):
            layer.weight = _constant(value.view(C, C, 1, 1))
        self.q.bias, self.out.bias = _constant(bias[0] * scale), _constant(out_bias + out_weight.view(C, C) @ bias[2])

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        h = self.norm(x)
        q, k, v = (layer(h).view(B * self.heads, C // self.heads, H * W) for layer in (self.q, self.k, self.v))
        attended = self.attend(q.transpose(1, 2), k, v.transpose(1, 2))
        out: Tensor = x + self.out(attended.transpose(1, 2).reshape(B, C, H, W))
        return out


class TokenSelfAttention(FoldedSelfAttention):
    """The same with linear layers on tokens: a runtime's integer matrix products return floats, its convolutions integers."""

    def __init__(self, source: SelfAttention) -> None:
        super().__init__(source)
        for name in ("q", "k", "v", "out"):
            layer: nn.Conv2d = getattr(self, name)
            linear = nn.Linear(layer.in_channels, layer.out_channels, bias=layer.bias is not None)
            linear.weight, linear.bias = _constant(layer.weight.flatten(1)), layer.bias  # type: ignore[assignment]
            setattr(self, name, linear)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        tokens = _tokens(self.norm(x))
        q, k, v = (self._heads(layer(tokens), B) for layer in (self.q, self.k, self.v))
        attended = self.attend(q, k.transpose(1, 2), v)
        if self.heads > 1:
            attended = attended.unflatten(0, (B, self.heads)).transpose(1, 2)
        out: Tensor = x + self.out(attended.reshape(B * H * W, C)).view(B, H * W, C).transpose(1, 2).reshape(B, C, H, W)
        return out

    def _heads(self, tokens: Tensor, batch: int) -> Tensor:
        """(B·HW, C) → (B·heads, HW, C/heads)."""
        tokens = tokens.unflatten(0, (batch, -1))
        return tokens if self.heads == 1 else tokens.unflatten(2, (self.heads, -1)).transpose(1, 2).flatten(0, 1)


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B·H·W, C): two dimensions, because a runtime's integer matrix product is one of matrices."""
    return x.flatten(2).transpose(1, 2).flatten(0, 1)


class FoldedSelfAttentionNHWC(FoldedSelfAttention):
    """The same for a runtime that keeps channels last: a map is read as tokens without being transposed first."""

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        d = C // self.heads
        h = self.norm(x)
        q, k, v = (layer(h).permute(0, 2, 3, 1).reshape(H * W, self.heads, d) for layer in (self.q, self.k, self.v))
        attended = self.attend(q.permute(1, 0, 2), k.permute(1, 2, 0), v.permute(1, 0, 2))
        out: Tensor = x + self.out(attended.permute(1, 0, 2).reshape(B, H, W, C).permute(0, 3, 1, 2))
        return out


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
        self.first.weight, self.second.weight = _constant(source.weight[:, :split]), _constant(source.weight[:, split:])
        self.first.bias = _constant(source.bias)  # type: ignore[arg-type]

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
        self.average = _constant(torch.full((C, C // self.groups, 1, 1), self.groups / C))
        self.weight = _constant(source.weight.view(1, C, 1, 1)) if source.affine else None
        self.bias = _constant(source.bias.view(1, C, 1, 1)) if source.affine else None

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
        self.weight, self.bias = (_constant(value) if source.affine else None for value in (source.weight, source.bias))
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
        self.average = _constant(torch.full((1, C), 1 / C))
        self.weight, self.bias = _constant(source.weight), _constant(source.bias)

    def forward(self, x: Tensor) -> Tensor:
        centred = x - F.linear(x, self.average)
        return centred * torch.rsqrt(F.linear(centred * centred, self.average) + self.eps) * self.weight + self.bias


class SubbandMajorGate(nn.Module):
    """`SubbandGate` whose output lies subband by subband: four (B, C, 1, 1), in the order of `SUBBANDS`."""

    def __init__(self, source: SubbandGate) -> None:
        super().__init__()
        self.hidden = source.hidden
        bands, channels = len(SUBBANDS), source.out.out_features // len(SUBBANDS)
        self.channels = channels
        self.out = nn.Linear(source.out.in_features, source.out.out_features)
        order = torch.arange(bands * channels).view(channels, bands).t().flatten()
        self.out.weight, self.out.bias = _constant(source.out.weight[order]), _constant(source.out.bias[order])

    def forward(self, x: Tensor) -> list[Tensor]:
        pooled = x.mean((2, 3), keepdim=True).flatten(1)
        gates = torch.sigmoid(self.out(F.silu(self.hidden(pooled))))
        gates = gates.view(*gates.shape, 1, 1)
        return [gates[:, start : start + self.channels] for start in range(0, len(SUBBANDS) * self.channels, self.channels)]


class DepthwiseWaveletDown(nn.Module):
    """`WaveletDown` as one fixed depthwise convolution a subband, summed as they come: the four are never stored."""

    def __init__(self, source: WaveletDown) -> None:
        super().__init__()
        self.gate = SubbandMajorGate(source.gate)
        weight = source.dwt.weight
        self.channels, self.pad = weight.shape[0] // len(SUBBANDS), weight.shape[-1] // 2 - 1
        kernels = weight.view(self.channels, len(SUBBANDS), *weight.shape[1:])
        self.kernels = nn.ParameterList(_constant(kernels[:, band]) for band in range(len(SUBBANDS)))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gate(x)
        x = wrap(x, self.pad)
        out: Tensor | None = None
        for gate, kernel in zip(gates, self.kernels, strict=True):
            band = gate * F.conv2d(x, kernel, stride=2, groups=self.channels)
            out = band if out is None else out + band
        assert out is not None  # noqa: S101 (there are four subbands)
        return out


class ButterflyWaveletUp(nn.Module):
    """`WaveletUp` with Haar's inverse as sums and differences of the four subbands, interleaved to the doubled size."""

    def __init__(self, source: WaveletUp) -> None:
        super().__init__()
        self.gate = SubbandMajorGate(source.gate)
        C, bands = source.expand.in_channels, len(SUBBANDS)
        weight = source.expand.weight.detach().view(C, bands, C, 1, 1) / 2  # Haar's taps are ±1/2
        bias = source.expand.bias.detach().view(C, bands) / 2  # type: ignore[union-attr]
        layers = [nn.Conv2d(C, C, 1) for _ in range(bands)]
        self.expand: nn.Module = nn.ModuleList(layers)
        for band, layer in enumerate(layers):
            layer.weight, layer.bias = _constant(weight[:, band]), _constant(bias[:, band])

    def forward(self, x: Tensor) -> Tensor:
        ll, lh, hl, hh = (gate * layer(x) for gate, layer in zip(self.gate(x), self.expand.children(), strict=True))
        # LH is high pass along the height: it changes sign between the upper and the lower row.
        upper_l, upper_h, lower_l, lower_h = ll + lh, hl + hh, ll - lh, hl - hh
        return self._interleave(upper_l + upper_h, upper_l - upper_h, lower_l + lower_h, lower_l - lower_h)

    def _interleave(self, *pixels: Tensor) -> Tensor:
        """Four (B, C, H, W), of each cell its upper left, upper right, lower left and lower right pixel → (B, C, 2·H, 2·W)."""
        return F.pixel_shuffle(torch.stack(pixels, dim=2).flatten(1, 2), 2)


def _interleave_nhwc(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    B, C, H, W = a.shape
    upper, lower = (torch.cat(pair, 1).permute(0, 2, 3, 1).reshape(B, H, 1, 2 * W * C) for pair in ((a, b), (c, d)))
    return torch.cat([upper, lower], 2).reshape(B, 2 * H, 2 * W, C).permute(0, 3, 1, 2)


class JoinedWaveletUp(ButterflyWaveletUp):
    """The same with one convolution that makes all four subbands, one after the other, and one product with the gates."""

    def __init__(self, source: WaveletUp) -> None:
        super().__init__(source)
        C, bands = source.expand.in_channels, len(SUBBANDS)
        joined = nn.Conv2d(C, bands * C, 1)
        joined.weight, joined.bias = (
            _constant(torch.cat([part.get_parameter(name) for part in self.expand.children()])) for name in ("weight", "bias")
        )
        self.expand = joined

    def forward(self, x: Tensor) -> Tensor:
        subbands = self.expand(x) * torch.cat(self.gate(x), dim=1)
        C = subbands.shape[1] // 4
        low, high = subbands[:, : 2 * C], subbands[:, 2 * C :]  # LL and LH; HL and HH
        left, right = low + high, low - high
        return self._interleave(
            left[:, :C] + left[:, C:], right[:, :C] + right[:, C:], left[:, :C] - left[:, C:], right[:, :C] - right[:, C:]
        )


class JoinedWaveletUpNHWC(JoinedWaveletUp):
    """The same for a runtime that keeps channels last."""

    def _interleave(self, *pixels: Tensor) -> Tensor:
        return _interleave_nhwc(*pixels)


class ButterflyWaveletUpNHWC(ButterflyWaveletUp):
    """The same for a runtime that keeps channels last, where neighbouring columns are two halves of one longer pixel."""

    def _interleave(self, *pixels: Tensor) -> Tensor:
        return _interleave_nhwc(*pixels)


class ConcatPixelUp(nn.Module):
    """Pixel doubling by concatenation, for a runtime that has no nearest-neighbour upsampling."""

    def __init__(self, source: PixelUp | ConvUp) -> None:
        super().__init__()
        self.conv = source.conv if isinstance(source, ConvUp) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(_interleave_nhwc(x, x, x, x))
        return out


class FoldedHaarUp(nn.Module):
    """A convolution and Haar's inverse of its output as one convolution, (B, C, H, W) → (B, D, 2·H, 2·W).

    Each pixel of a 2×2 cell is ± half of the four subbands: with that in the weights, the convolution makes the pixels.
    """

    def __init__(self, conv: nn.Conv2d, idwt: IDWT2) -> None:
        super().__init__()
        bands = len(SUBBANDS)
        self.channels = conv.out_channels // bands
        pixels = idwt.weight[:bands].reshape(bands, 4)  # subbands × pixels of a cell: haar's taps
        weight = torch.einsum("bp,dbikl->dpikl", pixels, conv.weight.detach().unflatten(0, (self.channels, bands)))
        bias = conv.bias.detach().view(self.channels, bands) @ pixels  # type: ignore[union-attr]
        self.conv = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding)  # type: ignore[arg-type]
        self.conv.weight, self.conv.bias = (_constant(self._ordered(value)) for value in (weight, bias))

    def _ordered(self, values: Tensor) -> Tensor:
        """(D, 4, …), by channel and pixel → (4·D, …), in the order that `forward` wants."""
        return values.flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


class FoldedHaarUpNHWC(FoldedHaarUp):
    """The same for a runtime that keeps channels last: the upper row's pixels come first, then the lower row's."""

    def _ordered(self, values: Tensor) -> Tensor:
        return values.transpose(0, 1).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.conv(x).permute(0, 2, 3, 1)
        B, H, W, _ = pixels.shape
        row = 2 * self.channels
        upper, lower = (half.reshape(B, H, 1, W * row) for half in (pixels[..., :row], pixels[..., row:]))
        return torch.cat([upper, lower], 2).reshape(B, 2 * H, 2 * W, self.channels).permute(0, 3, 1, 2)


class FoldedHaarDecoder(nn.Module):
    """`LatentDecoder` with `FoldedHaarUp`: plain convolutions, and no transposed one, which Core ML Tools would not take."""

    up: type[FoldedHaarUp] = FoldedHaarUp

    def __init__(self, source: LatentDecoder) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for layer in source.layers:
            if isinstance(layer, IDWT2) and isinstance(layers[-1], nn.Conv2d):
                layers[-1] = self.up(layers[-1], layer)
            else:
                layers.append(layer)
        self.layers = nn.Sequential(*layers)
        self.std, self.mean = (_constant(value[:, None, None]) for value in (source.std, source.mean))

    def forward(self, latent: Tensor) -> Tensor:
        out: Tensor = self.layers(latent * self.std + self.mean)
        return out


class FoldedHaarDecoderNHWC(FoldedHaarDecoder):
    """The same with `FoldedHaarUpNHWC`."""

    up = FoldedHaarUpNHWC


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
