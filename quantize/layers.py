"""Quantized layers: what a program computes, in torch, with the very operators that exporters and delegates know.

A layer holds integers and scales; an activation's `Point` puts it on a grid and takes it off again. Both are written with
`quantized_decomposed` operators, the form that PT2E, torch.onnx and Core ML Tools share: so the simulation is the program.
Until it is quantized a layer computes with its float weights and a point lets everything through.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401 (registers the operators)

from edge_sd.models.attention_forms import Attend, TokenSelfAttention
from edge_sd.models.blocks import ConvDown
from edge_sd.models.stepped import Stepped
from edge_sd.quantize.grid import ActivationGrid, WeightGrid

_OPS = torch.ops.quantized_decomposed
_UNSIGNED = {8: torch.uint8, 16: torch.uint16}
_SIGNED = {8: torch.int8, 16: torch.int16}
# The right side of a matrix product of activations: kernels are fast where it is signed and has no zero_point.
SYMMETRIC = ("keys", "values")


class Point(Stepped):
    """A place in the program where an activation is put on a grid, one grid a program.

    Attributes:
        grids: by program; empty: it lets everything through.
        symmetric: its grids are centred on 0, so that they are signed integers without a zero_point.
        observe: called with each value that comes along, (B, …), while it is calibrated.
        programs: (B,) int64, the program of each sample of a batch that mixes them, while a block is reconstructed.
    """

    def __init__(self, *, symmetric: bool = False) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.grids: tuple[ActivationGrid, ...] = ()
        self.observe: Callable[[Tensor], None] | None = None
        self.programs: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.observe is not None:
            self.observe(x)
        if not self.grids:
            return x
        if self.programs is not None:
            return self._mixed(x, self.programs)
        grid = self.grids[self.program]
        if self.symmetric:  # the same grid, counted from its middle
            arguments = (grid.scale, 0, -grid.zero_point, grid.high - grid.zero_point, _SIGNED[grid.bits])
        else:
            arguments = (grid.scale, grid.zero_point, 0, grid.high, _UNSIGNED[grid.bits])
        out: Tensor = _OPS.dequantize_per_tensor(_OPS.quantize_per_tensor(x, *arguments), *arguments)
        return out

    def _mixed(self, x: Tensor, programs: Tensor) -> Tensor:
        """The same for a batch of several programs' samples, with a gradient: that of the identity inside of the range."""
        per_sample = len(x) // len(programs)  # heads, where attention has moved them into the batch

        def column(values: Sequence[float]) -> Tensor:
            picked = torch.tensor(values, dtype=x.dtype)[programs].repeat_interleave(per_sample)
            return picked.view(-1, *([1] * (x.ndim - 1)))

        scale, zero = column([grid.scale for grid in self.grids]), column([float(grid.zero_point) for grid in self.grids])
        exact = x / scale + zero
        inside = exact.clamp(0, self.grids[0].high)
        return (inside + (inside.round() - inside).detach() - zero) * scale


class QuantizedLayer(nn.Module, ABC):
    """A convolution or a linear layer whose weights are integers times a scale.

    Attributes:
        weight: float weights (O, I, …) until `store`, then None.
        codes: int8 weights, in the weights' shape.
        scales: (O, groups) float32.
        bias: float32, never quantized.
        input, output: points before and after it.
        soft: while it is reconstructed, gives the weights that it computes with.
    """

    codes: Tensor | None
    scales: Tensor | None

    def __init__(self, source: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = nn.Parameter(source.weight.detach(), requires_grad=False)
        self.bias = None if source.bias is None else nn.Parameter(source.bias.detach(), requires_grad=False)
        self.input, self.output = Point(), Point()
        self.grid: WeightGrid | None = None
        self.soft: Callable[[], Tensor] | None = None
        self.register_buffer("codes", None)
        self.register_buffer("scales", None)

    def store(self, codes: Tensor, scales: Tensor, grid: WeightGrid) -> None:
        """Compute with integers from now on: codes int8 (O, I, …), scales float32 (O, groups)."""
        self.codes, self.scales, self.grid, self.weight, self.soft = codes, scales, grid, None, None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its weights, (O, I, …)."""
        weights = self.codes if self.weight is None else self.weight
        assert weights is not None  # noqa: S101 (one of the two is there)
        return tuple(weights.shape)

    def weights(self) -> Tensor:
        """What it computes with, float32."""
        if self.soft is not None:
            return self.soft()
        if self.weight is not None:
            return self.weight
        codes, scales, grid = self.codes, self.scales, self.grid
        assert codes is not None  # noqa: S101 (`store` sets all three)
        assert scales is not None  # noqa: S101
        assert grid is not None  # noqa: S101
        if scales.shape[1] == 1:
            out: Tensor = _OPS.dequantize_per_channel(
                codes, scales[:, 0], torch.zeros(len(scales), dtype=torch.int64), 0, grid.low, grid.high, torch.int8
            )
            return out
        group = codes[0].numel() // scales.shape[1]
        flat: Tensor = _OPS.dequantize_per_channel_group(
            codes.flatten(1),
            scales,
            torch.zeros_like(scales, dtype=torch.int32),
            grid.low,
            grid.high,
            torch.int8,
            group,
            torch.float32,
        )
        return flat.view(codes.shape)

    @abstractmethod
    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer itself."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.output(self.compute(self.input(x), self.weights()))
        return out


class QuantizedConv(QuantizedLayer):
    """`nn.Conv2d` (and `ConvDown`), (B, I, H, W) → (B, O, H', W')."""

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__(source)
        self.stride, self.padding = source.stride, source.padding
        self.pad_end = isinstance(source, ConvDown) and not source.padding[0]

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.pad_end:
            x = F.pad(x, (0, 1, 0, 1))
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class QuantizedLinear(QuantizedLayer):
    """`nn.Linear`, (…, I) → (…, O)."""

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)


_KINDS: dict[type[nn.Module], Callable[..., QuantizedLayer]] = {
    nn.Conv2d: QuantizedConv,
    ConvDown: QuantizedConv,
    nn.Linear: QuantizedLinear,
}


def quantizable(module: nn.Module) -> nn.Module:
    """Replace, in place, every convolution and linear layer by one that can be quantized, and give attention its points."""
    for parent in list(module.modules()):
        if isinstance(parent, Attend):
            for place in Attend.PLACES:
                parent.add_module(place, Point(symmetric=place in SYMMETRIC))
        for name, child in list(parent.named_children()):
            if type(child) in _KINDS:
                setattr(parent, name, _KINDS[type(child)](child))
        if isinstance(parent, TokenSelfAttention):
            parent.k.input = parent.v.input = parent.q.input  # one tensor, one grid
    return module


def layers_of(module: nn.Module) -> dict[str, QuantizedLayer]:
    """Every quantizable layer by name, in the order of the program."""
    return {name: part for name, part in module.named_modules() if isinstance(part, QuantizedLayer)}


def points_of(module: nn.Module) -> dict[str, Point]:
    """Every point by name, in the order of the program."""
    return {name: part for name, part in module.named_modules() if isinstance(part, Point)}


def points_in(module: nn.Module) -> Iterator[Point]:
    """The points alone."""
    return (part for part in module.modules() if isinstance(part, Point))
