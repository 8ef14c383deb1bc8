"""Reductions: over some axes, all where none are named; and the two that find a place along one."""

from collections.abc import Callable

import torch
from torch import Tensor

from edge_sd.runtimes.mil.operators import Arguments, operator, unfolded

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):  # from the last on, so that the others stay where they are
        x = x.prod(axis, keepdim=keep)
    return x


REDUCTIONS: dict[str, Reduction] = {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "reduce_log_sum_exp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
    "reduce_max": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "reduce_mean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "reduce_min": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "reduce_prod": _product,
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}


def _reduction(name: str) -> None:
    def reduce(a: Arguments) -> Tensor:
        x = a.tensor("x")
        axes = sorted({unfolded(x, axis) for axis in a.integers("axes", range(x.ndim))})
        return REDUCTIONS[name](x, axes, a.flag("keep_dims", False))

    operator(name)(reduce)


for _name in REDUCTIONS:
    _reduction(_name)


@operator("reduce_argmax")
def reduce_argmax(a: Arguments) -> Tensor:
    return _place(a, torch.argmax)


@operator("reduce_argmin")
def reduce_argmin(a: Arguments) -> Tensor:
    return _place(a, torch.argmin)


def _place(a: Arguments, find: Callable[..., Tensor]) -> Tensor:
    x = a.tensor("x")
    return find(x, unfolded(x, a.integer("axis", -1)), keepdim=a.flag("keep_dims", False))
