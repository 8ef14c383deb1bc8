"""SpectralUNet: latent diffusion's U-Net, split into what depends on time and what does not, with optional wavelet gating.

`temporal` turns timesteps (and classes) into rows of features; `denoise` is the program without time that gets exported;
`forward` is their composition. Architecture: 2112.10752; gating: 2211.17106.
"""

from collections.abc import Callable, Generator
from functools import partial
from itertools import accumulate
from typing import Literal, NamedTuple, TypedDict, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sd.errors import UsageError
from edge_sd.models.blocks import (
    ConvDown,
    ConvUp,
    PixelUp,
    PoolDown,
    ResBlock,
    SelfAttention,
    SpatialTransformer,
    group_norm,
    sinusoid,
    zeroed,
)
from edge_sd.models.config import ModelConfig
from edge_sd.models.gating import WaveletDown, WaveletUp


class Temporal(nn.Module):
    """All that depends on the timestep or the class: (t[, y][, context]) → rows of features.

    LDM has one linear layer a residual block, each fed the same SiLU of the time embedding: here they are one layer, `project`,
    whose output columns are the blocks' rows one after the other. Context tokens, where there are any, follow them.
    """

    def __init__(self, config: ModelConfig, feature_width: int) -> None:
        super().__init__()
        self.config = config
        width = config.sinusoid_width
        self.hidden = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, 4 * width)
        self.project = nn.Linear(4 * width, feature_width)
        if config.num_classes is not None:
            added = config.class_conditioning == "add"
            each = 4 * width if added else config.context_tokens * cast(int, config.context_dim)
            self.classes = nn.Embedding(config.num_classes, each)

    def forward(self, t: Tensor, y: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        config = self.config
        if (y is None) != (config.num_classes is None):
            wanted = "needs a class" if y is None else "knows no classes"
            raise UsageError(f"this model {wanted}", "y is given where, and only where, num_classes is set")
        embedding = self.out(F.silu(self.hidden(sinusoid(t, config.sinusoid_width, shift=config.embedding_shift))))
        if y is not None and config.class_conditioning == "add":
            embedding = embedding + self.classes(y)
        rows: Tensor = self.project(F.silu(embedding))
        if config.context_dim is None:
            return rows
        if context is None:
            if config.class_conditioning != "context" or y is None:
                raise UsageError(
                    f"this model needs a context of {config.context_tokens} tokens of {config.context_dim}",
                    "give context (B, tokens, dim)",
                )
            context = self.classes(y)
        return torch.cat([rows, context.flatten(1)], dim=1)


class _AttentionShape(TypedDict):
    groups: int
    heads: int | None
    head_channels: int | None


class UNetLayer(nn.Module):
    """One residual block and the attention after it, where there is one."""

    def __init__(self, block: ResBlock, attention: SelfAttention | SpatialTransformer | None) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, row: Tensor, context: Tensor | None) -> Tensor:
        x = self.block(x, row)
        if isinstance(self.attention, SpatialTransformer):
            x = self.attention(x, context)
        elif self.attention is not None:
            x = self.attention(x)
        return x


class Unit(NamedTuple):
    """One part of the denoiser about to be called: what it is called, and with what."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor | None, ...]


Walk = Generator[Unit, Tensor, Tensor]


class SpectralUNet(nn.Module):
    """The denoiser. See `ModelConfig` for its shapes.

    Attributes:
        feature_width: F, the number of time features a row has (context tokens included).
        rows: of these, how many each residual block takes, in their order.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.rows: list[int] = []
        channels, factor = config.width, 1
        self.conv_in = nn.Conv2d(config.in_channels, channels, 3, padding=1)
        self.down = nn.ModuleList()
        skips = [channels]
        for level, multiplier in enumerate(config.multipliers):
            for _ in range(config.blocks):
                self.down.append(self._layer(channels, config.width * multiplier, attention=factor in config.attention))
                channels = config.width * multiplier
                skips.append(channels)
            if level < config.levels - 1:
                self.down.append(self._resample(channels, "down"))
                skips.append(channels)
                factor *= 2
        self.middle = nn.ModuleList(
            [self._layer(channels, channels, attention=True), self._layer(channels, channels, attention=False)]
        )
        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            for _ in range(config.blocks + 1):
                layer = self._layer(channels + skips.pop(), config.width * multiplier, attention=factor in config.attention)
                layer.block.joined = channels
                self.up.append(layer)
                channels = config.width * multiplier
            if level:
                self.up.append(self._resample(channels, "up"))
                factor //= 2
        self.norm_out = group_norm(config.norm_groups, channels, config.norm_eps)
        self.conv_out = zeroed(nn.Conv2d(channels, config.out_channels, 3, padding=1))
        self.temporal_net = Temporal(config, sum(self.rows))
        self.feature_width = sum(self.rows) + (config.context_tokens * config.context_dim if config.context_dim else 0)

    # Construction

    def _block(self, channels: int, out_channels: int, resample: Callable[[int], nn.Module] | None = None) -> ResBlock:
        config = self.config
        block = ResBlock(
            channels,
            out_channels,
            groups=config.norm_groups,
            scale_shift=config.scale_shift,
            dropout=config.dropout,
            eps=config.norm_eps,
            resample=resample,
        )
        self.rows.append(block.feature_width)
        return block

    def _layer(self, channels: int, out_channels: int, *, attention: bool) -> UNetLayer:
        config = self.config
        block = self._block(channels, out_channels)
        if not attention:
            return UNetLayer(block, None)
        shape = _AttentionShape(groups=config.norm_groups, heads=config.heads, head_channels=config.head_channels)
        if config.context_dim is None:
            return UNetLayer(block, SelfAttention(out_channels, **shape, eps=config.norm_eps))
        return UNetLayer(
            block, SpatialTransformer(out_channels, **shape, context_dim=config.context_dim, depth=config.transformer_depth)
        )

    def _resample(self, channels: int, way: str) -> nn.Module:
        """Gating replaces the resampling convolution or, where a residual block resamples, the pooling inside of it."""
        down = way == "down"
        gated: Callable[[int], nn.Module] = partial(WaveletDown if down else WaveletUp, wavelet=self.config.wavelet)
        if self.config.resample == "block":
            plain = PoolDown if down else PixelUp
            return self._block(channels, channels, gated if self.config.gating else lambda _: plain())
        if self.config.gating:
            return gated(channels)
        return ConvDown(channels, self.config.down_padding) if down else ConvUp(channels)

    # The two halves

    def temporal(self, t: Tensor, y: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """All that depends on time: t (B,) floating, in training timesteps, may be fractional; y (B,) int64 → (B, F)."""
        features: Tensor = self.temporal_net(t, y, context)
        return features

    def denoise(self, x: Tensor, features: Tensor) -> Tensor:
        """The program without time: x (B, C, H, W), features (B, F) → the prediction, (B, out_channels, H, W)."""
        return self.denoise_with_taps(x, features)[0]

    def denoise_with_taps(self, x: Tensor, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """`denoise`, and the last feature map at each resolution: {"encoder 32", …, "middle", "decoder 32", …} → (B, c, h, w)."""
        give = self._conditions(x, features)
        h = x
        skips: list[Tensor] = []
        taps: dict[str, Tensor] = {}
        for name, module, skip in self._parts():
            h = module(*give(module, torch.cat([h, skips.pop()], dim=1) if skip == "taken" else h))
            if skip == "left":
                skips.append(h)
            if name.startswith("middle"):
                taps["middle"] = h
            elif isinstance(module, UNetLayer):
                taps[f"{'encoder' if name.startswith('down') else 'decoder'} {h.shape[-1]}"] = h
        return self.conv_out(F.silu(self.norm_out(h))), taps

    def walk(self, x: Tensor, features: Tensor) -> Walk:
        """`denoise`, part by part: yields each before it is called, is sent what the caller makes of it, returns the prediction.

        The caller may call it, look at it, or call another in its place: calibration and reconstruction go through a model so.
        """
        give = self._conditions(x, features)
        h = x
        skips: list[Tensor] = []
        for name, module, skip in self._parts():
            h = yield Unit(name, module, give(module, torch.cat([h, skips.pop()], dim=1) if skip == "taken" else h))
            if skip == "left":
                skips.append(h)
        return (yield Unit("conv_out", self.conv_out, (F.silu(self.norm_out(h)),)))

    def _parts(self) -> list[tuple[str, nn.Module, Literal["left", "taken", ""]]]:
        """All but the last convolution: name, module, and whether a skip is left behind it or taken up before it."""
        parts: list[tuple[str, nn.Module, Literal["left", "taken", ""]]] = [("conv_in", self.conv_in, "left")]
        for index, module in enumerate(self.down):
            parts.append((f"down.{index}", module, "left"))
        for index, module in enumerate(self.middle):
            parts.append((f"middle.{index}", module, ""))
        for index, module in enumerate(self.up):
            parts.append((f"up.{index}", module, "taken" if isinstance(module, UNetLayer) else ""))
        return parts

    def _conditions(self, x: Tensor, features: Tensor) -> Callable[[nn.Module, Tensor], tuple[Tensor | None, ...]]:
        """What turns a part and its feature map into its arguments: the part's own row of features, the context."""
        config = self.config
        if x.shape[-2] % 2 ** (config.levels - 1) or x.shape[-1] % 2 ** (config.levels - 1):
            raise UsageError(
                f"a sample of {x.shape[-2]}×{x.shape[-1]} cannot be halved {config.levels - 1} times",
                "use a multiple of the last level's factor",
            )
        rows = iter(self._split(features[:, :, None, None]))  # columns once, for all blocks
        context = None
        if config.context_dim is not None:
            context = features[:, self._context_start() :].unflatten(1, (config.context_tokens, config.context_dim))

        def arguments(module: nn.Module, h: Tensor) -> tuple[Tensor | None, ...]:
            if isinstance(module, UNetLayer):
                return h, next(rows), context
            return (h, next(rows)) if isinstance(module, ResBlock) else (h,)

        return arguments

    def _split(self, columns: Tensor) -> list[Tensor]:
        """Each residual block's own, of (B, F, 1, 1); slices and not one split: a form that every delegate takes."""
        return [columns[:, end - width : end] for end, width in zip(accumulate(self.rows), self.rows, strict=True)]

    def _context_start(self) -> int:
        """The first column that is context."""
        return sum(self.rows)

    def unit_names(self) -> list[str]:
        """The parts that `walk` yields, in their order."""
        return [*(name for name, _, _ in self._parts()), "conv_out"]

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), t (B,) → the prediction, (B, out_channels, H, W)."""
        return self.denoise(x, self.temporal(t, y, context))
