"""Drawing samples from a model: its features for a plan, its denoiser as the plan's program."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from edge_sd.decoder import Decoder
from edge_sd.diffusion.execute import execute
from edge_sd.diffusion.noise import gaussian_batch
from edge_sd.diffusion.plan import Plan
from edge_sd.models.config import check_label
from edge_sd.models.stepped import select
from edge_sd.models.unet import SpectralUNet


def plan_features(model: SpectralUNet, plan: Plan, label: int | None = None) -> NDArray[np.float32]:
    """The rows of time features of a model for a plan, (N, F) float32.

    Args:
        label: class, given where and only where the model knows classes.

    Raises:
        UsageError: a class is missing, unknown or not wanted, or the model wants a context that is not a class.
    """
    check_label(model.config, label)
    device = next(model.parameters()).device
    times = torch.from_numpy(plan.timestep).float().to(device)
    labels = None if label is None else torch.full((len(times),), label, device=device)
    with torch.no_grad():
        features: NDArray[np.float32] = model.temporal(times, labels).cpu().numpy()
    return features


def ready_to_draw(model: SpectralUNet) -> SpectralUNet:
    """The model on the accelerator, where there is one; on a CPU with channels last.

    That is what oneDNN's convolutions in float32 want: `emoji64` takes 1.2× less time on one thread, with batches from 8 to 48
    (training in bfloat16 takes 1.2× more).
    """
    if torch.cuda.is_available():
        return model.to("cuda")
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def sample_model(
    model: SpectralUNet,
    plan: Plan,
    *,
    seed: int = 0,
    count: int = 1,
    batch_size: int = 32,
    label: int | None = None,
    observe: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float32]:
    """Draw `count` samples, (count, C, H, W) float32; sample i depends on (seed, i) alone.

    Args:
        label: class of all of them, where the model knows classes.
        observe: called with (steps done, steps in all) over all batches.
    """
    device = next(model.parameters()).device
    features = torch.from_numpy(plan_features(model, plan, label)).to(device)
    starts = range(0, count, batch_size)
    samples = []
    for start in starts:
        indices = range(start, min(start + batch_size, count))

        def noise(row: int, indices: range = indices) -> torch.Tensor:
            return torch.from_numpy(gaussian_batch(seed, indices, row, model.config.sample_shape)).to(device)

        def program(x: torch.Tensor, row: int, start: int = start) -> torch.Tensor:
            if len(plan.header.programs) > 1:
                select(model, int(plan.program[row]))
            e = model.denoise(x, features[row].expand(len(x), -1))
            observe(start // batch_size * len(plan) + row + 1, len(starts) * len(plan))
            return e

        with torch.no_grad():
            samples.append(execute(plan, program, noise(-1), noise).cpu().numpy())
    return np.concatenate(samples)


def decode(
    decoder: Decoder, latents: NDArray[np.float32], observe: Callable[[int, int], None] = lambda done, total: None
) -> NDArray[np.float32]:
    """Latents (n, C, h, w) → images (n, 3, H, W), about −1 … 1, one at a time: an image is much larger than its latent.

    Args:
        observe: called with (images done, images in all).
    """
    module, images = decoder.build(), []
    with torch.inference_mode():
        for latent in latents:
            images.append(module(torch.from_numpy(latent[None])).numpy())
            observe(len(images), len(latents))
    return np.concatenate(images)
