"""How far a quantized model is from the full-precision one, along the trajectories of the latter and at the end of its own."""

from collections.abc import Callable

import numpy as np
import torch
from pydantic import Field

from edge_sd.decoder import Decoder
from edge_sd.diffusion import Plan
from edge_sd.diffusion.execute import execute
from edge_sd.diffusion.noise import gaussian_batch
from edge_sd.evaluation.metrics import PSNR_DEFINITION, SNR_DEFINITION, psnr_db, snr_db
from edge_sd.models.stepped import select
from edge_sd.models.unet import SpectralUNet
from edge_sd.sampling import decode, plan_features
from edge_sd.validation import Record


class Quality(Record):
    """Decibels against the full-precision model; of the torch simulation.

    Attributes:
        images, seed: whose noise the trajectories start from.
        step_db: SNR of the prediction at each step, the full-precision sample given.
        final_snr_db: SNR of the sample at the end of the model's own trajectory.
        final_psnr_db: PSNR of the image there, decoded where there is a decoder.
    """

    images: int = Field(ge=1)
    seed: int
    step_db: tuple[float, ...]
    final_snr_db: float
    final_psnr_db: float
    definitions: dict[str, str] = Field(default_factory=lambda: {"snr_db": SNR_DEFINITION, "psnr_db": PSNR_DEFINITION})

    @property
    def mean_db(self) -> float:
        """Mean over the steps."""
        return float(np.mean(self.step_db))

    @property
    def worst_step(self) -> int:
        """The step whose prediction is farthest off."""
        return int(np.argmin(self.step_db))


Predict = Callable[[torch.Tensor, int], torch.Tensor]


def simulated(quantized: SpectralUNet, plan: Plan) -> Predict:
    """Of a quantized model's simulation; the plan's column `program` calls its programs."""
    label = 0 if quantized.config.num_classes else None
    features = torch.from_numpy(plan_features(quantized, plan, label))

    def predict(x: torch.Tensor, row: int) -> torch.Tensor:
        select(quantized, int(plan.program[row]))
        return quantized.denoise(x, features[row].expand(len(x), -1))

    return predict


def measure(
    model: SpectralUNet,
    predict: Predict,
    plan: Plan,
    decoder: Decoder | None,
    *,
    images: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Quality:
    """Compare a quantized model with the full-precision one.

    Args:
        predict: (x (B, C, H, W), row of the plan) → the quantized model's prediction.
        decoder: of a model of latents.
        seed: of the noise; calibration's is another.
    """
    shape, label = model.config.sample_shape, 0 if model.config.num_classes else None
    features = torch.from_numpy(plan_features(model, plan, label))
    steps: list[float] = []

    def noise(row: int) -> torch.Tensor:
        return torch.from_numpy(gaussian_batch(seed, range(images), row, shape))

    def program(x: torch.Tensor, row: int) -> torch.Tensor:
        rows = features[row].expand(len(x), -1)
        expected = model.denoise(x, rows)
        steps.append(snr_db(expected.numpy(), predict(x, row).numpy()))
        progress(row + 1, len(plan))
        return expected

    with torch.no_grad():
        exact = execute(plan, program, noise(-1), noise).numpy()
        own = execute(plan, predict, noise(-1), noise).numpy()
    pictures = (exact, own) if decoder is None else (decode(decoder, exact), decode(decoder, own))
    return Quality(
        images=images, seed=seed, step_db=tuple(steps), final_snr_db=snr_db(exact, own), final_psnr_db=psnr_db(*pictures)
    )
