"""Arrays to images: every value lands where it should, and comes back from a PNG file to the bit."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_sd.data import grid, png_bytes, rgb, save_png, to_uint8


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_every_byte_survives_the_way_to_floats_and_back() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    np.testing.assert_array_equal(to_uint8(pixels.astype(np.float32) / 127.5 - 1)[..., 0], pixels[:, 0])


def test_what_leaves_the_range_is_clipped() -> None:
    samples = np.array([-np.inf, -7, -1, 0, 1, 7, np.inf], dtype=np.float32).reshape(1, 1, 1, 7)
    assert to_uint8(samples).ravel().tolist() == [0, 0, 0, 128, 255, 255, 255]


def test_channels_go_last() -> None:
    samples = np.full((2, 3, 4, 5), -1.0)
    samples[1, 2, 3, 4] = 1
    images = to_uint8(samples)
    assert images.shape == (2, 4, 5, 3)
    assert np.argwhere(images).tolist() == [[1, 3, 4, 2]]


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (3, [0, 1, 2]), (4, [0, 1, 2])])
def test_any_channel_count_can_be_shown(channels: int, shown: list[int]) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (2, channels, 4, 4))
    images = rgb(samples)
    assert images.shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(images, to_uint8(samples)[..., shown])


@given(st.integers(1, 11), st.integers(1, 5), st.integers(0, 3), st.integers(1, 3))
def test_a_grid_holds_each_image_once_and_white_elsewhere(count: int, columns: int, gap: int, scale: int) -> None:
    images = random_images(count, 3, 2, 3)
    sheet = grid(images, columns, gap, scale)
    rows = -(-count // columns)
    assert sheet.shape == ((rows * (3 + gap) - gap) * scale, (columns * (2 + gap) - gap) * scale, 3)
    rest = np.ones(sheet.shape[:2], dtype=bool)
    for index, image in enumerate(images):
        top, left = index // columns * (3 + gap) * scale, index % columns * (2 + gap) * scale
        place = slice(top, top + 3 * scale), slice(left, left + 2 * scale)
        np.testing.assert_array_equal(sheet[place], np.kron(image, np.ones((scale, scale, 1), dtype=np.uint8)))
        rest[place] = False
    assert (sheet[rest] == 255).all()


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (2, (1, 2)), (4, (2, 2)), (5, (2, 3)), (16, (4, 4))])
def test_a_grid_is_as_square_as_it_can_be(count: int, shape: tuple[int, int]) -> None:
    assert grid(random_images(count, 4, 4, 3), gap=0).shape == (4 * shape[0], 4 * shape[1], 3)


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7)])
def test_a_png_comes_back_to_the_bit(shape: tuple[int, ...], tmp_path: Path) -> None:
    image = random_images(*shape)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(image)))), image)
    save_png(tmp_path / "new" / "image.png", image)
    with Image.open(tmp_path / "new" / "image.png") as file:
        np.testing.assert_array_equal(np.asarray(file), image)
    assert png_bytes(image) == png_bytes(image)
