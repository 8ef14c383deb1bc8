"""Weights that may lie in shards over processes: the average that becomes the result, and what is written of the rest."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor; of a shard, every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(like: Tensor, tensor: Tensor) -> Tensor:
    """A full tensor that every process has, on `like`'s device, in its memory format and in its shards."""
    if isinstance(like, DTensor):
        tensor = tensor.to(like.device)
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return torch.empty_like(like, requires_grad=False).copy_(tensor)


def _local(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


class Average:
    """The exponential moving average of a model's weights; each process averages the shards that it holds.

    Attributes:
        module: a copy of the model for evaluation. It holds the averages, or, where they lie in shards, what `gather` put there.
    """

    def __init__(self, model: nn.Module) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self._ours: list[Tensor] = list(self.module.parameters())
        self.sharded = False

    def follow(self, model: nn.Module) -> None:
        """Take over how `model` is laid out, after it has been prepared."""
        theirs = list(model.parameters())
        self.sharded = any(isinstance(parameter, DTensor) for parameter in theirs)
        if self.sharded:
            self._ours = [placed_like(their, our) for their, our in zip(theirs, self.module.parameters(), strict=True)]
        else:
            self.module.to(theirs[0].device)

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float) -> None:
        """w̄ ← d·w̄ + (1−d)·w."""
        torch._foreach_lerp_(_local(self._ours), _local(list(model.parameters())), 1 - decay)

    @torch.no_grad()
    def gather(self) -> nn.Module:
        """`module` with the averages of now. Of shards, every process must ask for it."""
        if self.sharded:
            for ours, full in zip(self._ours, self.module.parameters(), strict=True):
                full.copy_(whole(ours))
        return self.module


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer remembers: "index of the parameter.name" → tensor."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, values in state.items() for name, value in values.items()}


def put_moments(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer back what `moments` said, in full tensors."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = copy.copy(optimizer.state_dict())
    state["state"] = {}
    for name, tensor in tensors.items():
        index, _, moment = name.partition(".")
        parameter = parameters[int(index)]
        placed = placed_like(parameter, tensor) if tensor.shape == parameter.shape and tensor.ndim else tensor
        state["state"].setdefault(int(index), {})[moment] = placed
    optimizer.load_state_dict(state)
