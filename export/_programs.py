"""The programs of a bundle as modules that torch.export can take, and their contracts."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_sd.bundle import Trajectory
from edge_sd.bundle.contract import Contract, PlanSummary, TensorSpec
from edge_sd.diffusion import Plan
from edge_sd.errors import EdgeSDError
from edge_sd.export._target import Source
from edge_sd.models.rewrites import rewritten
from edge_sd.models.slim import network_of
from edge_sd.models.stepped import select
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize.recipe import Recipe


class DenoiserProgram(nn.Module):
    """The program without time: (sample, time_features) → prediction."""

    def __init__(self, model: SpectralUNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, time_features: Tensor) -> Tensor:
        return self.model.denoise(sample, time_features)


class TemporalProgram(nn.Module):
    """All that depends on time, always in float32: (timestep (1,), label (1,) int32 where there are classes) → (1, F)."""

    def __init__(self, model: SpectralUNet) -> None:
        super().__init__()
        self.temporal_net = model.temporal_net

    def forward(self, timestep: Tensor, label: Tensor | None = None) -> Tensor:
        out: Tensor = self.temporal_net(timestep, label)
        return out


class DecoderProgram(nn.Module):
    """latent (1, C, h, w) → image (1, 3, H, W)."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, latent: Tensor) -> Tensor:
        out: Tensor = self.decoder(latent)
        return out


def contracts(plan: Plan, trajectories: Sequence[Trajectory], labels: Sequence[int], *, temporal: bool) -> list[Contract]:
    """Contracts of the programs that a bundle holds, ranges as met in its golden trajectories.

    Args:
        labels: class of each trajectory; empty without classes.
    """
    summary = PlanSummary.of(plan)
    features = np.concatenate([trajectory.features for trajectory in trajectories])
    rows = TensorSpec.of("time_features", "NF", features)
    inputs = (TensorSpec.of("sample", "NCHW", np.concatenate([t.samples for t in trajectories])), rows)
    outputs = (TensorSpec.of("prediction", "NCHW", np.concatenate([t.predictions for t in trajectories])),)
    found = [Contract(program=name, inputs=inputs, outputs=outputs, plan=summary) for name in plan.header.programs]
    if temporal:
        given = [TensorSpec.of("timestep", "N", plan.timestep.astype(np.float32))]
        if labels:
            given.append(TensorSpec.of("label", "N", np.array(labels, dtype=np.int32)))
        given = [spec.model_copy(update={"shape": (1,)}) for spec in given]
        found.append(Contract(program="temporal", inputs=tuple(given), outputs=(rows,), plan=summary))
    images = [trajectory.image for trajectory in trajectories if trajectory.image is not None]
    if images:
        found.append(
            Contract(
                program="decoder",
                inputs=(TensorSpec.of("latent", "NCHW", np.stack([t.final for t in trajectories])),),
                outputs=(TensorSpec.of("image", "NCHW", np.stack(images)),),
                plan=summary,
            )
        )
    return found


Examples = dict[str, tuple[NDArray[np.generic], ...]]  # inputs of one call, by program


def sources(
    model: SpectralUNet,
    decoder: nn.Module | None,
    wanted: Sequence[Contract],
    examples: Examples,
    rewrites: Sequence[str],
    recipe: Recipe | None = None,
) -> list[Source]:
    """Rewrite each program and take it through torch.export, once for every target that wants the same rewrites.

    Raises:
        EdgeSDError: torch.export cannot follow a program.
    """
    # Steps in groups share one network, widths have one each.
    denoisers: dict[SpectralUNet, nn.Module] = {}
    others: dict[str, nn.Module] = {"temporal": TemporalProgram(model).eval()}
    if decoder is not None:
        others["decoder"] = rewritten(DecoderProgram(decoder), rewrites)
    found = []
    for contract in wanted:
        name, _, number = contract.program.partition(".")
        if name == "denoiser":
            network = network_of(model, int(number or 0))
            if network not in denoisers:
                denoisers[network] = rewritten(DenoiserProgram(network), rewrites)
            module = denoisers[network]
            select(module, int(number or 0))
        else:
            module = others[name]
        # A copy, because NumPy gives a dimension that was added the stride 0, and ExecuTorch takes no such tensor.
        example = tuple(torch.from_numpy(value.copy()) for value in examples[name])
        found.append(
            Source(
                exported_program(module, example, contract.program),
                example,
                contract,
                () if name == "temporal" else tuple(rewrites),
                recipe if name == "denoiser" else None,
            )
        )
    return found


def exported_program(module: nn.Module, example: tuple[Tensor, ...], name: str) -> torch.export.ExportedProgram:
    """Take a module through torch.export.

    Raises:
        EdgeSDError: torch.export cannot follow it.
    """
    try:
        with torch.no_grad():
            return _without_traces(torch.export.export(module, example))
    except Exception as error:  # whatever the tracer stumbles over is a fault of the program
        raise EdgeSDError(
            f"torch.export cannot take the {name}: {str(error).strip().splitlines()[0]}",
            "edge-sd doctor shows the versions that were tested together",
        ) from error


def _without_traces(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Source lines of this machine do not go into a file, and every later pass is spared copying them."""
    for node in exported.graph.nodes:
        for key in ("stack_trace", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)
    return exported
