"""What a step trains on: a function of the seed and the step, whole over all processes, every image once an epoch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_sd.data import ImageData
from edge_sd.training import TrainConfig
from edge_sd.training.batches import Batch, draw_batch, image_indices
from edge_sd.training.samples import PixelSamples

WHOLE = slice(None)


def draw(data: ImageData, *, seed: int = 3, step: int = 5, batch_size: int = 8, flip: bool = True, share: slice = WHOLE) -> Batch:
    config = TrainConfig(seed=seed, batch_size=batch_size, flip=flip)
    return draw_batch(PixelSamples(data), 1000, config, step, share)


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("x0", "noise", "t"))


@given(st.integers(0, 2**64 - 1), st.integers(1, 40), st.integers(1, 13))
def test_each_epoch_is_a_permutation(seed: int, images: int, batch_size: int) -> None:
    """Also where a batch ends in the next epoch, or is longer than one."""
    seen = np.concatenate([image_indices(seed, step, batch_size, images) for step in range(-(-3 * images // batch_size))])
    for epoch in seen[: 3 * images].reshape(3, images):
        assert sorted(epoch) == list(range(images))


def test_epochs_and_seeds_have_their_own_orders() -> None:
    orders = {tuple(image_indices(seed, epoch, 32, 32)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_a_batch_is_a_function_of_seed_and_step(tiny_data: ImageData) -> None:
    batches = {(seed, step): draw(tiny_data, seed=seed, step=step) for seed in (0, 1) for step in (0, 1, 2)}
    torch.manual_seed(99)
    np.random.seed(99)
    for (seed, step), batch in reversed(batches.items()):
        assert same(draw(tiny_data, seed=seed, step=step), batch)
    noises = [batch.noise.numpy().tobytes() for batch in batches.values()]
    assert len(set(noises)) == len(noises)


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_the_shares_of_all_processes_make_the_batch(processes: int, tiny_data: ImageData) -> None:
    size = 8 // processes
    shares = [draw(tiny_data, share=slice(rank * size, (rank + 1) * size)) for rank in range(processes)]
    joined = Batch(*(torch.cat([getattr(share, name) for share in shares]) for name in ("x0", "noise", "t")), labels=None)
    assert same(joined, draw(tiny_data))


def test_a_batch_holds_the_images_it_names_some_of_them_mirrored(tiny_data: ImageData) -> None:
    mirrored = 0
    for step in range(8):
        batch = draw(tiny_data, step=step)
        assert batch.x0.dtype == batch.noise.dtype == torch.float32
        for image, index in zip(batch.x0.numpy(), image_indices(3, step, 8, len(tiny_data)), strict=True):
            expected = tiny_data.pixels[index] / np.float32(127.5) - 1
            if not np.allclose(image, expected, atol=1e-6):
                np.testing.assert_allclose(image, expected[..., ::-1], atol=1e-6)
                mirrored += 1
    assert 16 < mirrored < 48  # of 64, half of them: four standard deviations


def test_without_flip_nothing_is_mirrored_and_nothing_else_changes(tiny_data: ImageData) -> None:
    batch = draw(tiny_data, flip=False)
    np.testing.assert_allclose(batch.x0.numpy(), tiny_data.pixels[image_indices(3, 5, 8, len(tiny_data))] / 127.5 - 1, atol=1e-6)
    assert batch.x0.min() >= -1
    assert batch.x0.max() <= 1


def test_timesteps_are_uniform_and_the_noise_gaussian(tiny_data: ImageData) -> None:
    batches = [draw(tiny_data, step=step, batch_size=32) for step in range(50)]
    t = torch.cat([batch.t for batch in batches]).double()
    assert t.min() >= 0
    assert t.max() <= 999
    assert t.mean().item() == pytest.approx(499.5, abs=5 * 1000 / np.sqrt(12 * len(t)))
    counts = torch.histc(t, 10, 0, 1000)
    assert (counts - 160).abs().max() < 5 * np.sqrt(160)
    noise = torch.cat([batch.noise for batch in batches]).double()
    assert noise.mean().abs().item() < 5 / np.sqrt(noise.numel())
    assert noise.var().item() == pytest.approx(1, abs=5 * np.sqrt(2 / noise.numel()))
