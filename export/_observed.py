"""A denoiser for ExecuTorch with every module's output as an output of its own, to be looked into; see `runtimes.locate`."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_sd.bundle.contract import Contract
from edge_sd.bundle.manifest import Program
from edge_sd.export._programs import DenoiserProgram, exported_program
from edge_sd.export._target import Source
from edge_sd.models.observe import observed
from edge_sd.models.rewrites import rewritten
from edge_sd.models.slim import network_of
from edge_sd.models.stepped import select
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize.recipe import Recipe


class ObservedProgram(nn.Module):
    """(sample, time_features) → prediction, then the outputs of modules.

    Args:
        names: of those modules.
    """

    def __init__(self, program: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.program, self.names = program, tuple(names)

    def forward(self, sample: Tensor, time_features: Tensor) -> tuple[Tensor, ...]:
        with observed(self.program) as found:
            prediction = self.program(sample, time_features)
        # A copy: a lowering may not hand a value out twice, and the last module's is the prediction.
        return (prediction, *(found[name] * 1.0 for name in self.names))


def observed_program(
    model: SpectralUNet,
    contract: Contract,
    inputs: Sequence[NDArray[np.float32]],
    program: Program,
    recipe: Recipe | None = None,
) -> tuple[list[str], bytes]:
    """Lower a denoiser with its modules' outputs.

    Args:
        inputs: of one call, for their shapes.
        program: the one that was exported; its rewrites and its delegate are taken.

    Returns:
        Names of the outputs, "prediction" first, and a .pte whose method has the program's name.

    Raises:
        EdgeSDError: it cannot be traced or lowered.
    """
    from edge_sd.export.executorch import lowered_program

    number = int(program.name.partition(".")[2] or 0)
    denoiser = rewritten(DenoiserProgram(network_of(model, number)), program.rewrites)
    select(denoiser, number)
    example = tuple(torch.from_numpy(value.copy()) for value in inputs)
    with torch.no_grad(), observed(denoiser) as found:
        denoiser(*example)
    module = ObservedProgram(denoiser, tuple(found)).eval()
    source = Source(exported_program(module, example, contract.program), example, contract, program.rewrites, recipe)
    return ["prediction", *module.names], lowered_program(source, program.options["delegate"])
