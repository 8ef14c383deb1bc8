"""What plans are tried on: a model, the process it was trained for, and its samples, whose noise is made once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from edge_sd.diffusion.execute import execute
from edge_sd.diffusion.noise import gaussian_batch
from edge_sd.diffusion.plan import Plan, Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.evaluation.draw import labels_of
from edge_sd.files import tensors_digest
from edge_sd.models.slim import StepAwareUNet
from edge_sd.models.stepped import select
from edge_sd.sampling import plan_features, ready_to_draw

if TYPE_CHECKING:
    from edge_sd.models.unet import SpectralUNet

BATCH = 32  # samples that are drawn together; more of them gain nothing on a core of their own


@dataclass(frozen=True)
class Subject:
    """A model and how it is drawn from.

    Attributes:
        model: anything with `denoise`, `temporal`, `config` and parameters, as `SpectralUNet` has them.
        noise_schedule, prediction: what it was trained for.
        decoder: latent (B, C, h, w) → image (B, 3, H, W), where it denoises latents.
        labels: the classes drawn in turn, sample i of class i mod their number; empty where the model knows none.
    """

    model: "SpectralUNet"
    noise_schedule: NoiseSchedule
    prediction: Prediction
    decoder: torch.nn.Module | None = None
    labels: tuple[int, ...] = ()
    _stepped: "dict[tuple[int, ...], SpectralUNet]" = field(default_factory=dict, compare=False, repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 over the weights."""
        return tensors_digest({name: value.detach().float().cpu().numpy() for name, value in self.model.state_dict().items()})

    def draw(self, plan: Plan, seed: int, indices: range) -> NDArray[np.float32]:
        """Samples (len(indices), C, H, W), not decoded; sample i depends on (seed, i) alone.

        Raises:
            UsageError: a class is missing, or not wanted.
        """
        device, model = next(self.model.parameters()).device, self._of(plan)
        rows = torch.from_numpy(np.stack([plan_features(self.model, plan, label) for label in self.labels or (None,)])).to(device)
        shape, found = self.model.config.sample_shape, []
        for start in range(indices.start, indices.stop, BATCH):
            block = range(start, min(start + BATCH, indices.stop))
            kinds = torch.tensor(block, device=device) % len(rows)

            def noise(row: int, block: range = block) -> torch.Tensor:
                return torch.from_numpy(_noise(seed, block, row, shape).copy()).to(device)

            def program(x: torch.Tensor, row: int, kinds: torch.Tensor = kinds) -> torch.Tensor:
                if len(plan.header.programs) > 1:
                    select(model, int(plan.program[row]))
                return model.denoise(x, rows[kinds, row])

            with torch.no_grad():
                found.append(execute(plan, program, noise(-1), noise).float().cpu().numpy())
        return np.concatenate(found)

    def _of(self, plan: Plan) -> "SpectralUNet":
        """The model, as wide as each of the plan's programs wants it."""
        widths = plan.header.widths
        if not widths:
            return self.model
        if widths not in self._stepped:
            self._stepped[widths] = StepAwareUNet(self.model, widths)
        return self._stepped[widths]

    def decode(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Samples → images (n, C, H, W), about −1 … 1; latents one at a time, because an image is much larger."""
        if self.decoder is None:
            return samples
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            return np.concatenate([self.decoder(torch.from_numpy(one[None]).to(device)).cpu().numpy() for one in samples])


def open_subject(path: Path, label: int | None = None) -> Subject:
    """From a checkpoint's file, or what `edge_sd.foreign.open_model` reads; on the accelerator, where there is one.

    Args:
        label: class of all samples; None takes all classes in turn, where the model knows any.

    Raises:
        EdgeSDError: it is no checkpoint; or it is quantized.
        UsageError: no such class.
    """
    from edge_sd.foreign import open_model

    found = open_model(path)
    header = found.checkpoint.header
    model = ready_to_draw(found.checkpoint.build())
    return Subject(
        model,
        header.noise_schedule,
        header.prediction,
        None if found.decoder is None else found.decoder.build().to(next(model.parameters()).device),
        labels_of(header.model, label)[0],
    )


@lru_cache(maxsize=256)
def _noise(seed: int, indices: range, row: int, shape: Sequence[int]) -> NDArray[np.float32]:
    noise = gaussian_batch(seed, indices, row, tuple(shape))
    noise.flags.writeable = False
    return noise
