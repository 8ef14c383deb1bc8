"""What the wavelet gates do along a trajectory: the "frequency dynamics" of Spectral Diffusion, made visible."""

import numpy as np
import torch
from numpy.typing import NDArray

from edge_sd.diffusion.execute import execute
from edge_sd.diffusion.noise import gaussian_batch
from edge_sd.diffusion.plan import Plan
from edge_sd.models.gating import SubbandGate
from edge_sd.models.unet import SpectralUNet
from edge_sd.models.wavelets import SUBBANDS
from edge_sd.sampling import plan_features


def gate_means(model: SpectralUNet, plan: Plan, *, seed: int = 0, count: int = 4) -> dict[str, NDArray[np.float64]]:
    """Mean gate of each subband at each step, for every gated resampling: {"down 32→16": (N, 4), …}; empty without gating."""
    found: dict[str, list[list[float]]] = {}
    handles = []
    for way, modules in (("down", model.down), ("up", model.up)):
        for module in modules.modules():
            if isinstance(module, SubbandGate):

                def keep(gate: SubbandGate, inputs: tuple[torch.Tensor], output: torch.Tensor, way: str = way) -> None:
                    size = inputs[0].shape[-1]
                    name = f"{way} {size}→{size // 2 if way == 'down' else size * 2}"
                    found.setdefault(name, []).append(output.unflatten(1, (-1, len(SUBBANDS))).mean((0, 1, 3, 4)).tolist())

                handles.append(module.register_forward_hook(keep))
    features = torch.from_numpy(plan_features(model, plan))
    noise = {
        row: torch.from_numpy(gaussian_batch(seed, range(count), row, model.config.sample_shape)) for row in range(-1, len(plan))
    }
    try:
        with torch.no_grad():
            execute(plan, lambda x, row: model.denoise(x, features[row].expand(count, -1)), noise[-1], noise.__getitem__)
    finally:
        for handle in handles:
            handle.remove()
    # A residual block that resamples has a gate on each of its two paths: they are averaged.
    return {name: np.array(values).reshape(len(plan), -1, len(SUBBANDS)).mean(1) for name, values in found.items()}
