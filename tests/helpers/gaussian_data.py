"""A model of data whose diffusion is known in closed form: independent Gaussians, a width of its own for every value."""

import numpy as np
import torch

from edge_sd.diffusion import SCHEDULES
from edge_sd.models.config import ModelConfig
from edge_sd.search.subject import Subject

SCHEDULE = SCHEDULES["cosine"]
SHAPE = (2, 4, 4)


class GaussianModel(torch.nn.Module):
    """The exact v prediction for x0 ~ N(0, s²): E[x0|x] = αs²x/(α²s² + σ²), E[ε|x] = σx/(α²s² + σ²), v = αε − σx0."""

    def __init__(self, classes: int | None = None) -> None:
        super().__init__()
        self.config = ModelConfig(
            image_size=4, in_channels=2, out_channels=2, width=8, multipliers=(1,), attention=(), norm_groups=8, head_channels=8,
            num_classes=classes,
        )  # fmt: skip
        self.register_parameter("widths", torch.nn.Parameter(torch.linspace(0.05, 1.2, 32).view(1, *SHAPE)))

    def temporal(self, times: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """(N,) → (N, 3): α, σ and a class's factor of all widths."""
        alpha_bar = torch.from_numpy(SCHEDULE.alpha_bar(times.numpy().clip(0, SCHEDULE.timesteps - 1)))
        factor = torch.ones(len(times)) if labels is None else 1 / (1 + labels.float())
        return torch.stack([alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float(), factor], 1)

    def denoise(self, x: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W), features (B, 3) → v."""
        alpha, sigma, factor = (features[:, k].view(-1, 1, 1, 1) for k in range(3))
        variance = (self.widths * factor) ** 2
        total = alpha**2 * variance + sigma**2
        return alpha * sigma * (1 - variance) / total * x


def exact_end(noise: np.ndarray, factor: float = 1.0) -> np.ndarray:
    """Where the ODE leads from noise (n, *SHAPE) at t = T − 1: x/√(α²s² + σ²) stays what it is."""
    last = float(SCHEDULE.alpha_bar(SCHEDULE.timesteps - 1))
    widths = np.linspace(0.05, 1.2, 32).reshape(SHAPE) * factor
    return widths * noise / np.sqrt(last * widths**2 + 1 - last)


def subject(classes: int | None = None) -> Subject:
    """The model and its process."""
    labels = () if classes is None else tuple(range(classes))
    return Subject(GaussianModel(classes), SCHEDULE, "v", labels=labels)  # type: ignore[arg-type]
