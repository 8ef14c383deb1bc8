"""Wavelet resampling, and pixel doubling, in the forms that runtimes run best: plain convolutions, sums and changes of layout."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sd.models.autoencoder import LatentDecoder
from edge_sd.models.blocks import ConvUp, PixelUp, constant
from edge_sd.models.gating import SubbandGate, WaveletDown, WaveletUp
from edge_sd.models.wavelets import IDWT2, SUBBANDS, wrap


class SubbandMajorGate(nn.Module):
    """`SubbandGate` whose output lies subband by subband: four (B, C, 1, 1), in the order of `SUBBANDS`."""

    def __init__(self, source: SubbandGate) -> None:
        super().__init__()
        self.hidden = source.hidden
        bands, channels = len(SUBBANDS), source.out.out_features // len(SUBBANDS)
        self.channels = channels
        self.out = nn.Linear(source.out.in_features, source.out.out_features)
        order = torch.arange(bands * channels).view(channels, bands).t().flatten()
        self.out.weight, self.out.bias = constant(source.out.weight[order]), constant(source.out.bias[order])

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
        self.kernels = nn.ParameterList(constant(kernels[:, band]) for band in range(len(SUBBANDS)))

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
            layer.weight, layer.bias = constant(weight[:, band]), constant(bias[:, band])

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
            constant(torch.cat([part.get_parameter(name) for part in self.expand.children()])) for name in ("weight", "bias")
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
        self.conv.weight, self.conv.bias = (constant(self._ordered(value)) for value in (weight, bias))

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
        self.std, self.mean = (constant(value[:, None, None]) for value in (source.std, source.mean))

    def forward(self, latent: Tensor) -> Tensor:
        out: Tensor = self.layers(latent * self.std + self.mean)
        return out


class FoldedHaarDecoderNHWC(FoldedHaarDecoder):
    """The same with `FoldedHaarUpNHWC`."""

    up = FoldedHaarUpNHWC
