"""AdaRound: up or down, learnt for each weight, so that what comes out of a block changes least.

Up or Down? Adaptive Rounding (2004.10568): with w = s·(⌊w/s⌋ + h(V)), h a sigmoid stretched to −0.1 … 1.1 and cut to 0 … 1, V is
learnt by gradient descent on the block's error (BRECQ, 2102.05426), and a term (eq. 24) that pushes h to 0 or 1 grows sharper.
"""

import torch
from torch import Tensor, nn

from edge_sd.quantize.grid import WeightGrid, expand_scales

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
SHARPNESS_FIRST, SHARPNESS_LAST = 20.0, 2.0


class SoftRounding:
    """The weights of one layer while it is learnt which way they are rounded.

    Args:
        weight: float weights (O, I, …).
        scales: (O, groups), all > 0.
    """

    def __init__(self, weight: Tensor, scales: Tensor, grid: WeightGrid) -> None:
        self.grid, self.first_scales = grid, scales
        # How far off the first scales: the grid that the rounding is on stays, what its integers stand for may move a little.
        self.stretch = nn.Parameter(torch.zeros_like(scales))
        exact = weight.detach() / expand_scales(scales, weight)
        self.floor = exact.floor()
        share = (exact - self.floor).clamp(1e-4, 1 - 1e-4)
        # The inverse of the stretched sigmoid: learning starts from the weights as they are.
        self.v = nn.Parameter(torch.logit((share - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)))

    def up(self) -> Tensor:
        """h(V): how much of the way up, 0 … 1, in the weights' shape."""
        return (torch.sigmoid(self.v) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)

    def __call__(self) -> Tensor:
        codes = (self.floor + self.up()).clamp(self.grid.low, self.grid.high)
        return codes * expand_scales(self.first_scales * (1 + self.stretch), codes)

    def scales(self) -> Tensor:
        """The scales as learnt, (O, groups)."""
        return (self.first_scales * (1 + self.stretch)).detach()

    def indecision(self, sharpness: float) -> Tensor:
        """Mean of 1 − |2h − 1|^β: 0 where all are decided."""
        return (1 - (2 * self.up() - 1).abs().pow(sharpness)).mean()

    def codes(self) -> Tensor:
        """The decision: int8, in the weights' shape."""
        decided = self.floor + (self.v.detach() >= 0).to(self.floor.dtype)
        return decided.clamp(self.grid.low, self.grid.high).to(torch.int8)


def sharpness(progress: float, warmup: float) -> float:
    """β at a share of the way, annealed linearly from 20 to 2 after the warm-up."""
    rest = min(max((progress - warmup) / (1 - warmup), 0.0), 1.0)
    return SHARPNESS_LAST + (SHARPNESS_FIRST - SHARPNESS_LAST) * (1 - rest)
