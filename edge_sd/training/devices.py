"""How a learner is put to work: processes, arithmetic, memory format, recomputation, slices of a batch.

Processes are those that `accelerate launch` or torchrun started; nothing here asks for more. None of this decides what is
learnt, up to rounding, but for random numbers drawn in `forward` (dropout): those differ by process and slice.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.training.config import TrainConfig

Batch = tuple[Tensor, ...]


def open_accelerator() -> Accelerator:
    """Join the processes that were launched together, or be the only one.

    Precision is a training setting here; what the launcher was configured with must not change it.

    Raises:
        UsageError: they were launched for something else than DDP or FSDP.
        EdgeSDError: they do not find each other.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # Gradients that live in the buckets save a copy of them.
    buckets = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    # Of processes on CPUs accelerate has to be told: each would be the only one, and all would write one folder.
    cpu = launched > 1 and not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[buckets])
    if accelerator.num_processes != launched:
        raise EdgeSDError(
            f"{launched} processes were launched, and this one is of {accelerator.num_processes}",
            "launch them by torchrun --nproc-per-node N -m edge_sd …, or accelerate launch on GPUs",
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate knows FSDP on GPUs and the like alone, and would quietly give each process all weights.
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        accelerator.state.distributed_type = DistributedType.FSDP
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM) or (
        kind == DistributedType.FSDP and not accelerator.is_fsdp2
    ):
        raise UsageError(f"training by {kind} is not supported", "accelerate launch --use_fsdp --fsdp_version 2, or plain DDP")
    return accelerator


def share_of(config: TrainConfig, processes: int, rank: int) -> slice:
    """Which part of each batch is this process's."""
    if config.batch_size % processes:
        raise UsageError(f"a batch of {config.batch_size} cannot be shared by {processes} processes", "choose a multiple")
    size = config.batch_size // processes
    if config.accumulate > size:
        raise UsageError(
            f"{size} images a process cannot be computed in {config.accumulate} slices", f"--accumulate {size} or less"
        )
    return slice(rank * size, (rank + 1) * size)


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether the forward pass is autocast to bfloat16."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def memory_format(config: TrainConfig, device: torch.device) -> torch.memory_format:
    """How feature maps lie in memory; "auto" is channels last on CUDA, whose tensor cores want it (on CPUs norms are slower)."""
    last = device.type == "cuda" if config.channels_last == "auto" else config.channels_last
    return torch.channels_last if last else torch.contiguous_format


@contextmanager
def fast_arithmetic(device: torch.device) -> Iterator[None]:
    """On CUDA: TF32 for products in float32, and convolution algorithms chosen by trial, until the run ends."""
    if device.type != "cuda":
        yield
        return
    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.benchmark = benchmark


def recompute(model: nn.Module, units: tuple[type[nn.Module], ...]) -> None:
    """Have every outermost module of the classes `units` keep its input alone and compute again what the backward pass needs."""
    for module in model.children():
        if isinstance(module, units):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
        else:
            recompute(module, units)


def seed_of(seed: int, step: int, rank: int, piece: int) -> int:
    """Of the random numbers that `forward` draws in one slice of one process's share."""
    return (seed * 1_000_003 + step + 0x9E37_79B9_7F4A_7C15 * (rank << 20 | piece)) % 2**63


def backward(
    accelerator: Accelerator,
    wrapped: nn.Module,
    batch: Batch,
    slices: int,
    seed: Callable[[int], int],
    move: Callable[[Tensor], Tensor],
    autocast: Any,
) -> dict[str, Tensor]:
    """Add up the gradients of this process's share slice by slice; return the share's terms of the loss.

    Each slice counts by its samples. Processes exchange gradients at the last one only.
    """
    totals: dict[str, Tensor] = {}
    for piece, part in enumerate(zip(*(value.tensor_split(slices) for value in batch), strict=True)):
        weight = len(part[0]) / len(batch[0])
        torch.manual_seed(seed(piece))
        with nullcontext() if piece == slices - 1 else accelerator.no_sync(wrapped):
            with autocast:
                terms: dict[str, Tensor] = wrapped(*map(move, part))
            accelerator.backward(sum(terms.values()) * weight)
        for name, value in terms.items():
            totals[name] = totals.get(name, 0) + value.detach() * weight
    return totals
