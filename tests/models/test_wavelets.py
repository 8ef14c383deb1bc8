"""The wavelet transform against PyWavelets, for each of its discrete wavelets, and against Haar's closed form."""

import re

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sd.errors import UsageError
from edge_sd.models.wavelets import DWT2, IDWT2, SUBBANDS, dwt2, idwt2

WAVELETS = pywt.wavelist(kind="discrete")

# Each wavelet is met below; those with a hundred taps would take most of the time here.
wavelets = st.sampled_from([name for name in WAVELETS if pywt.Wavelet(name).dec_len <= 20])
shapes = st.tuples(st.integers(1, 2), st.integers(1, 4), *[st.integers(1, 16).map(lambda half: 2 * half)] * 2)


def image(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def theirs(x: torch.Tensor, wavelet: str) -> np.ndarray:
    """PyWavelets' transform laid out as ours: cA, cH, cV, cD of channel 0, then of channel 1, and so on."""
    ca, (ch, cv, cd) = pywt.dwt2(x.numpy(), wavelet, "periodization")
    return np.concatenate([band[:, [channel]] for channel in range(x.shape[1]) for band in (ca, ch, cv, cd)], axis=1)


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_each_wavelet_is_pywt_both_ways_and_comes_back(wavelet: str) -> None:
    """Also where the filter is many times longer than the image, and wraps round it more than once."""
    for size in ((2, 2), (6, 10)):
        x = image((1, 1, *size))
        subbands = dwt2(x, wavelet)
        np.testing.assert_allclose(subbands.numpy(), theirs(x, wavelet), rtol=0, atol=1e-9)

        y = image(tuple(subbands.shape), seed=1)
        bands = [y[:, band :: len(SUBBANDS)].numpy() for band in range(len(SUBBANDS))]
        back = pywt.idwt2((bands[0], tuple(bands[1:])), wavelet, "periodization")
        np.testing.assert_allclose(idwt2(y, wavelet).numpy(), back, rtol=0, atol=1e-9)

        if wavelet != "dmey":  # cut off, and so only nearly orthogonal
            torch.testing.assert_close(idwt2(subbands, wavelet), x, rtol=0, atol=1e-9)


@given(shapes, wavelets, st.integers(0, 2**32))
def test_any_even_size_is_pywt_and_comes_back(shape: tuple[int, ...], wavelet: str, seed: int) -> None:
    x = image(shape, seed)
    subbands = dwt2(x, wavelet)
    assert subbands.shape == (shape[0], 4 * shape[1], shape[2] // 2, shape[3] // 2)
    np.testing.assert_allclose(subbands.numpy(), theirs(x, wavelet), rtol=0, atol=1e-9)
    torch.testing.assert_close(idwt2(subbands, wavelet), x, rtol=0, atol=1e-9)


@settings(max_examples=50)
@given(shapes, wavelets.filter(lambda name: pywt.Wavelet(name).orthogonal), st.integers(0, 2**32))
def test_orthogonal_wavelets_keep_the_energy(shape: tuple[int, ...], wavelet: str, seed: int) -> None:
    x = image(shape, seed)
    assert dwt2(x, wavelet).square().sum().item() == pytest.approx(x.square().sum().item(), rel=1e-9)


def test_haar_is_sums_and_differences_of_four_pixels() -> None:
    x = image((1, 2, 6, 10))
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    expected = {"LL": a + b + c + d, "LH": a + b - c - d, "HL": a - b + c - d, "HH": a - b - c + d}
    assert tuple(expected) == SUBBANDS
    for index, band in enumerate(expected.values()):
        torch.testing.assert_close(dwt2(x)[:, index::4], band / 2, rtol=0, atol=1e-12)


def test_subbands_of_a_channel_lie_together() -> None:
    """Only channel 1 holds anything: so do subbands 4 to 7, and nothing else."""
    x = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    x[:, 1] = image((1, 4, 4))
    energy = dwt2(x, "db2").square().sum((0, 2, 3))
    assert (energy[4:8] > 0).all()
    assert energy[:4].sum() == energy[8:].sum() == 0


@pytest.mark.parametrize(("band", "along"), [(1, "rows"), (2, "columns")])
def test_lh_sees_changes_from_row_to_row(band: int, along: str) -> None:
    stripes = torch.tensor([1.0, -1.0]).repeat(4)
    x = (stripes[:, None] if along == "rows" else stripes[None]).expand(1, 1, 8, 8)
    energy = dwt2(x).square().sum((0, 2, 3))
    assert energy.argmax() == band
    assert energy.sum() == pytest.approx(energy[band].item())


@pytest.mark.parametrize("size", [(5, 4), (4, 5), (1, 1), (7, 9)])
def test_an_odd_size_is_refused_and_named(size: tuple[int, int]) -> None:
    for transform in (dwt2, DWT2(1)):
        with pytest.raises(UsageError, match=re.escape(f"{size[0]}×{size[1]}")):
            transform(torch.zeros(1, 1, *size))


@pytest.mark.parametrize("wavelet", ["", "haar2", "db0", "mexh"])
def test_an_unknown_wavelet_is_refused_and_named(wavelet: str) -> None:
    for transform in (dwt2, idwt2):
        with pytest.raises(UsageError, match=re.escape(repr(wavelet))):
            transform(torch.zeros(1, 4, 4, 4), wavelet)


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 6])
def test_a_channel_count_that_is_not_fours_is_refused(channels: int) -> None:
    with pytest.raises(UsageError, match=f"{channels} channels"):
        idwt2(torch.zeros(1, channels, 4, 4))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("wavelet", ["haar", "db3", "bior2.2"])
def test_modules_are_the_functions_with_nothing_to_learn_or_save(wavelet: str, training: bool) -> None:
    """Also in the form that they have in training."""
    x = image((2, 3, 8, 12)).float()
    forward, inverse = DWT2(3, wavelet).train(training), IDWT2(3, wavelet).train(training)
    atol = 1e-6 if training else 0
    torch.testing.assert_close(forward(x), dwt2(x, wavelet), rtol=0, atol=atol)
    torch.testing.assert_close(inverse(forward(x)), idwt2(dwt2(x, wavelet), wavelet), rtol=0, atol=atol)
    for module in (forward, inverse):
        assert not module.state_dict()
        assert not list(module.parameters())


def test_the_gradient_is_the_adjoint() -> None:
    """⟨dwt2(x), y⟩ = ⟨x, grad⟩, which for an orthogonal wavelet is the inverse."""
    x, y = image((1, 2, 6, 8)).requires_grad_(), image((1, 8, 3, 4), seed=1)
    (dwt2(x, "db2") * y).sum().backward()
    torch.testing.assert_close(x.grad, idwt2(y, "db2"), rtol=0, atol=1e-9)
