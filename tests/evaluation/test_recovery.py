"""What is recovered of noise, against the closed form: a Wiener filter on Gaussian fields recovers SNR·S / (SNR·S + 1)."""

import numpy as np
import pytest
import torch

from edge_sd.diffusion import SCHEDULES
from edge_sd.evaluation.recovery import front, recovery

SIZE = 32
SCHEDULE = SCHEDULES["cosine"]


def field_spectrum(f0: float = 0.2) -> np.ndarray:
    """S(f) = (f₀/f)² on the grid of frequencies, in units of white noise; f = 0 as its neighbours."""
    axis = np.fft.fftfreq(SIZE)
    radius = np.maximum(np.hypot(axis[:, None], axis[None]), 1 / SIZE)
    return (f0 / radius) ** 2


def gaussian_fields(count: int) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal((count, 1, SIZE, SIZE))
    return np.fft.ifft2(np.fft.fft2(noise) * np.sqrt(field_spectrum())).real.astype(np.float32)


class Wiener(torch.nn.Module):
    """The best linear filter for these fields, as a model that predicts x0."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = torch.nn.Parameter(torch.from_numpy(field_spectrum()))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha_bar = float(SCHEDULE.alpha_bar(int(t[0])))
        gain = alpha_bar**0.5 * self.spectrum / (alpha_bar * self.spectrum + 1 - alpha_bar)
        return torch.fft.ifft2(torch.fft.fft2(x.double()) * gain).real.float()


def test_the_best_linear_filter_recovers_what_the_formula_says() -> None:
    found = recovery(Wiener(), SCHEDULE, "x0", gaussian_fields(256), [100, 300, 500, 700])  # type: ignore[arg-type]
    # The window blurs the spectrum by about a radius: where it is steep, below four cycles, that shows.
    np.testing.assert_allclose(found.measured[:, 4:], found.wiener[:, 4:], atol=0.05)
    expected = (0.2 / found.frequencies) ** 2
    np.testing.assert_allclose(found.spectrum[3:], expected[3:], rtol=0.15)
    assert (np.diff(found.wiener, axis=1) < 0).all()  # coarse first
    assert (np.diff(found.wiener, axis=0) < 0).all()  # the less noise, the more


def test_the_front_of_a_power_law_stands_where_the_formula_puts_it() -> None:
    """f_c = f₀·√(ᾱ/(1−ᾱ)) for S = (f₀/f)²."""
    times = [300, 400, 500, 600]
    found = recovery(Wiener(), SCHEDULE, "x0", gaussian_fields(256), times)  # type: ignore[arg-type]
    alpha_bar = SCHEDULE.alpha_bar(np.array(times))
    expected = 0.2 * np.sqrt(alpha_bar / (1 - alpha_bar))
    np.testing.assert_allclose(found.power_law_front, expected, rtol=0.05)
    np.testing.assert_allclose(found.front, expected, rtol=0.15)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_model_that_knows_nothing_of_the_image_recovers_noise(prediction: str) -> None:
    class Zero(Wiener):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x)

    found = recovery(Zero(), SCHEDULE, prediction, gaussian_fields(64), [500])  # type: ignore[arg-type]
    alpha_bar = float(SCHEDULE.alpha_bar(500))
    # ε = 0 makes x_t/√ᾱ, v = 0 makes √ᾱ·x_t.
    gain = 1 / alpha_bar if prediction == "epsilon" else alpha_bar
    expected = gain * (alpha_bar + (1 - alpha_bar) / found.spectrum)
    np.testing.assert_allclose(found.measured[0], expected, rtol=0.15)


def test_the_front_is_interpolated_and_missing_where_there_is_none() -> None:
    frequencies = np.array([0.1, 0.2, 0.3])
    shares = np.array([[0.9, 0.6, 0.4], [0.9, 0.8, 0.7], [0.4, 0.2, 0.1], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(front(frequencies, shares), [0.25, np.nan, np.nan, 0.15])
