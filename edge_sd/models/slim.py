"""Slim widths: smaller networks inside of a SpectralUNet, made of the first channels of each of its layers.

Denoising needs less of a network at some steps than at others; DDSM (2310.03337) trains one set of weights to work at several
widths and calls a narrow one where that is enough. A width is named by its channels at the first level. It shares everything
with the full network but the rest of each layer: the first channels of every convolution and norm, of each of the two maps that
meet at a skip, of each part of what is split behind a layer (q, k and v, heads, halves). The number of norm groups stays.

Time costs nothing on a device, so `temporal` is not slimmed: a narrow network picks its columns out of the full rows of features,
and a plan's features serve all widths.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor, nn

from edge_sd.errors import UsageError
from edge_sd.models.blocks import ResBlock, SelfAttention, TokenAttention, TransformerLayer
from edge_sd.models.config import ModelConfig
from edge_sd.models.stepped import Stepped
from edge_sd.models.unet import SpectralUNet, Walk
from edge_sd.validation import validated

Cut = tuple[slice, ...]  # of one dimension: the pieces that are kept, in their order


def slim_config(config: ModelConfig, width: int) -> ModelConfig:
    """The configuration at another width.

    Raises:
        UsageError: norm groups or heads do not divide it.
    """
    return validated(ModelConfig, {**config.model_dump(), "width": width, "slim_widths": ()}, f"slim width {width}")


def widths_of(config: ModelConfig) -> tuple[int, ...]:
    """All widths at which a model's weights work, ascending, the full one last."""
    return (*config.slim_widths, config.width)


def usual_widths(config: ModelConfig) -> tuple[int, ...]:
    """DDSM's widths, a quarter, a half and three quarters, as far as norm groups and heads divide them; else all they divide.

    Raises:
        UsageError: they divide none.
    """

    def fits(width: int) -> bool:
        try:
            slim_config(config, width)
        except UsageError:
            return False
        return True

    quarters = [config.width * part // 4 for part in (1, 2, 3) if config.width * part % 4 == 0]
    found = [width for width in quarters if fits(width)] or [width for width in range(2, config.width) if fits(width)]
    if not found:
        raise UsageError(
            f"a width of {config.width} with {config.norm_groups} norm groups has no slimmer one",
            "a wider preset, or fewer norm groups",
        )
    return tuple(found)


class SlimUNet(SpectralUNet):
    """The network at one width; its features are those of the full one.

    Args:
        full: the network that it is a part of.
        width: channels of the first level.
    """

    def __init__(self, full: SpectralUNet, width: int) -> None:
        super().__init__(slim_config(full.config, width))
        self.temporal_net, self.feature_width = full.temporal_net, full.feature_width
        self._all_rows = full.rows
        self.cuts = _cuts(full, self)

    def load(self, full: SpectralUNet) -> "SlimUNet":
        """Take over the weights; returns itself."""
        given = narrowed(dict(full.named_parameters()), self.cuts)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name in given:
                    parameter.copy_(given[name])
        return self

    def _split(self, columns: Tensor) -> list[Tensor]:
        found = []
        halves = 2 if self.config.scale_shift else 1
        for end, all_of_it, kept in zip(accumulate(self._all_rows), self._all_rows, self.rows, strict=True):
            starts = [end - all_of_it + half * all_of_it // halves for half in range(halves)]
            parts = [columns[:, start : start + kept // halves] for start in starts]
            found.append(parts[0] if halves == 1 else torch.cat(parts, dim=1))
        return found

    def kept_columns(self) -> Tensor:
        """(sum of `rows`,) int64: which of the full rows' columns this network takes, in its own order."""
        every = torch.arange(sum(self._all_rows))[None]
        return torch.cat(self._split(every), dim=1)[0]

    def _context_start(self) -> int:
        return sum(self._all_rows)


class SlimDenoiser(nn.Module):
    """A width as a function of the full network's weights, for training: gradients reach what they were cut from."""

    def __init__(self, full: SpectralUNet, width: int) -> None:
        super().__init__()
        self.slim = SlimUNet(full, width)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """With the weights that are put in; see `denoise_with`."""
        return self.slim.denoise(x, features)

    def denoise_with(self, weights: Mapping[str, Tensor], x: Tensor, features: Tensor) -> Tensor:
        """`SpectralUNet.denoise` at this width.

        Args:
            weights: parameters of the full network, by their names there.
        """
        given = {f"slim.{name}": weight for name, weight in narrowed(weights, self.slim.cuts).items()}
        return cast(Tensor, torch.func.functional_call(self, given, (x, features)))


class StepAwareUNet(SpectralUNet, Stepped):
    """A network that is as wide as the program at hand wants it; one network a width, and one `temporal` for all.

    Args:
        full: the network, with its weights.
        widths: of each program of a plan.

    Raises:
        UsageError: one of them is none that the weights were trained for.
    """

    def __init__(self, full: SpectralUNet, widths: Sequence[int]) -> None:
        nn.Module.__init__(self)  # the networks have the layers
        known = widths_of(full.config)
        if unknown := [width for width in widths if width not in known]:
            trained = f"work at widths {', '.join(map(str, known))}" if full.config.slim_widths else "are of one width"
            raise UsageError(
                f"the plan wants width {unknown[0]}, and the model's weights {trained}",
                "train with --slimmable, or a plan without widths",
            )
        self.config, self.rows, self.feature_width = full.config, full.rows, full.feature_width
        self.temporal_net, self.widths = full.temporal_net, tuple(widths)
        self.networks = nn.ModuleDict({
            str(width): full if width == full.config.width else SlimUNet(full, width).load(full)
            for width in dict.fromkeys(widths)
        })  # fmt: skip
        self.train(full.training)

    def at(self, program: int) -> SpectralUNet:
        """The network of one program."""
        return cast(SpectralUNet, self.networks[str(self.widths[program])])

    def denoise_with_taps(self, x: Tensor, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.at(self.program).denoise_with_taps(x, features)

    def walk(self, x: Tensor, features: Tensor) -> Walk:
        return self.at(self.program).walk(x, features)

    def unit_names(self) -> list[str]:
        return self.at(self.program).unit_names()


def network_of(model: SpectralUNet, program: int) -> SpectralUNet:
    """What computes one of a plan's programs; a model of one width computes all of them."""
    return model.at(program) if isinstance(model, StepAwareUNet) else model


# Which of a layer's channels are kept


def narrowed(weights: Mapping[str, Tensor], cuts: Mapping[str, tuple[Cut, ...]]) -> dict[str, Tensor]:
    """The kept part of each weight that is cut; views where a single piece is kept."""
    found = {}
    for name, dimensions in cuts.items():
        weight = weights[name]
        for dimension, pieces in enumerate(dimensions):
            kept = [weight.narrow(dimension, piece.start, piece.stop - piece.start) for piece in pieces]
            weight = kept[0] if len(kept) == 1 else torch.cat(kept, dimension)
        found[name] = weight
    return found


def _cuts(full: SpectralUNet, slim: SpectralUNet) -> dict[str, tuple[Cut, ...]]:
    """Of every parameter but the shared ones, what is kept in each dimension."""
    ours, theirs = _segments(slim), _segments(full)
    return {
        name: tuple(_cut(wide, narrow) for wide, narrow in zip(theirs[name], ours[name], strict=True))
        for name in ours
        if not name.startswith("temporal_net.")
    }


def _cut(wide: Sequence[int], narrow: Sequence[int]) -> Cut:
    starts = [0, *accumulate(wide)]
    pieces: list[slice] = []
    for start, kept in zip(starts, narrow, strict=False):
        if pieces and pieces[-1].stop == start:
            pieces[-1] = slice(pieces[-1].start, start + kept)
        else:
            pieces.append(slice(start, start + kept))
    return tuple(pieces)


def _segments(model: SpectralUNet) -> dict[str, list[tuple[int, ...]]]:
    """Of every parameter, how each dimension falls into segments of which the first channels are kept."""
    found: dict[str, list[tuple[int, ...]]] = {name: [(n,) for n in value.shape] for name, value in model.named_parameters()}

    def set_segments(name: str, dimension: int, segments: tuple[int, ...]) -> None:
        if name in found:
            found[name][dimension] = segments

    for prefix, module in model.named_modules():
        if isinstance(module, ResBlock) and module.joined:
            both = (module.joined, module.conv1.in_channels - module.joined)
            for name, dimension in (("norm1.weight", 0), ("norm1.bias", 0), ("conv1.weight", 1), ("skip.weight", 1)):
                set_segments(f"{prefix}.{name}", dimension, both)
        elif isinstance(module, SelfAttention):
            each = _heads(module.out.in_channels, model.config)
            set_segments(f"{prefix}.qkv.weight", 0, 3 * each)
            set_segments(f"{prefix}.qkv.bias", 0, 3 * each)
            set_segments(f"{prefix}.out.weight", 1, each)
        elif isinstance(module, TokenAttention):
            each = _heads(module.out.in_features, model.config)
            for layer in ("q", "k", "v"):
                set_segments(f"{prefix}.{layer}.weight", 0, each)
            set_segments(f"{prefix}.out.weight", 1, each)
        elif isinstance(module, TransformerLayer):
            half = (module.gate_in.out_features // 2,) * 2
            set_segments(f"{prefix}.gate_in.weight", 0, half)
            set_segments(f"{prefix}.gate_in.bias", 0, half)
    return found


def _heads(channels: int, config: ModelConfig) -> tuple[int, ...]:
    """A given number of heads all become narrower; heads of a given width become fewer, the first ones stay."""
    return (channels,) if config.heads is None else (channels // config.heads,) * config.heads
