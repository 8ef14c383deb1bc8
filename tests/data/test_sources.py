"""Reading images: what a folder may hold, how each kind is decoded, and how each kind of damage is named."""

import hashlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from edge_sd.data import DataConfig, dead_leaves, open_data, source_key
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import fingerprint

SIZE = 8


def picture(seed: int = 0, width: int = SIZE, height: int = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def read(folder: Path, size: int = SIZE, **changes: Any) -> np.ndarray:
    """The folder's images as (N, H, W, 3)."""
    return open_data(DataConfig(source=str(folder), **changes), size).pixels.transpose(0, 2, 3, 1)


# Dead leaves


def test_dead_leaves_are_the_sequence_of_their_seed() -> None:
    seen: list[tuple[int, int]] = []
    data = open_data(DataConfig(count=3, seed=5, min_radius=2), SIZE, lambda done, total: seen.append((done, total)))
    assert len(data) == 3
    assert data.pixels.shape == (3, 3, SIZE, SIZE)
    for index in range(3):
        np.testing.assert_array_equal(data.pixels[index].transpose(1, 2, 0), dead_leaves(5, index, SIZE, 2))
    assert data.digest == hashlib.sha256(data.pixels.tobytes()).hexdigest()
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert data.about == "3 dead leaves, seed 5, smallest radius 2 px"


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 0}, {"seed": -1}, {"min_radius": 0}, {"size": 3}, {"limit": 0}, {"max_broken": -1}, {"crop": -1},
        {"labels": True}, {"split": "train"}, {"label_column": "x"}, {"image_column": "x"},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        DataConfig(**changes)


# Folders


def test_a_folder_is_read_in_sorted_order_with_its_sub_folders(tmp_path: Path) -> None:
    names = ["b.png", "a/z.PNG", "a/b/c.png", "c.bmp", "a.png"]
    for seed, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image, and none by its name")
    (tmp_path / "folder.png").mkdir()
    seen: list[tuple[int, int]] = []
    data = open_data(DataConfig(source=str(tmp_path)), SIZE, lambda done, total: seen.append((done, total)))
    expected = [names.index(name) for name in ("a/b/c.png", "a/z.PNG", "a.png", "b.png", "c.bmp")]
    np.testing.assert_array_equal(data.pixels.transpose(0, 2, 3, 1), np.stack([np.asarray(picture(seed)) for seed in expected]))
    assert seen == [(i + 1, 5) for i in range(5)]
    assert data.about == f"5 images of {tmp_path.name}"


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"])
def test_lossless_formats_are_read_to_the_bit(suffix: str, tmp_path: Path) -> None:
    picture().save(tmp_path / f"image{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    np.testing.assert_array_equal(read(tmp_path)[0], np.asarray(picture()))


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_jpeg_is_read(suffix: str, tmp_path: Path) -> None:
    Image.new("RGB", (SIZE, SIZE), (200, 100, 50)).save(tmp_path / f"image{suffix}", quality=95)
    np.testing.assert_allclose(read(tmp_path)[0].mean((0, 1)), (200, 100, 50), atol=3)


def test_the_digest_is_of_every_pixel_and_nothing_else(tmp_path: Path) -> None:
    image = np.array(picture())
    Image.fromarray(image).save(tmp_path / "a.png", compress_level=0)
    before = open_data(DataConfig(source=str(tmp_path)), SIZE).digest
    Image.fromarray(image).save(tmp_path / "a.png", compress_level=9)
    assert open_data(DataConfig(source=str(tmp_path)), SIZE).digest == before
    image[3, 4, 1] ^= 1
    Image.fromarray(image).save(tmp_path / "a.png")
    assert open_data(DataConfig(source=str(tmp_path)), SIZE).digest != before


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"image_column": "nope"}, "--image-column: images in files of their own have no columns"),
        ({"label_column": "nope"}, "--label-column: images in files of their own have no columns"),
        ({"count": 5}, "--count: .* holds no dead leaves"),
        ({"min_radius": 4}, "--min-radius: .* holds no dead leaves"),
    ],
)
def test_what_is_of_other_sources_is_refused(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    picture().save(tmp_path / "cat" / "a.png")
    for use in (source_key, lambda config: open_data(config, SIZE)):
        with pytest.raises(UsageError, match=complaint):
            use(DataConfig(source=str(tmp_path), **changes))
    with pytest.raises(UsageError, match="nowhere is not"):  # the source comes first
        source_key(DataConfig(source=str(tmp_path / "nowhere"), **changes))
    assert len(open_data(DataConfig(source=str(tmp_path), count=4096, min_radius=1), SIZE)) == 1


# Kinds of image


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read(tmp_path)[0], np.repeat(grey[..., None], 3, axis=-1))


def test_black_and_white_becomes_black_and_white(tmp_path: Path) -> None:
    checks = np.indices((SIZE, SIZE)).sum(0) % 2 == 1
    Image.fromarray(checks).save(tmp_path / "checks.png")
    np.testing.assert_array_equal(read(tmp_path)[0], np.repeat(checks[..., None] * 255, 3, axis=-1))


def test_grey_of_sixteen_bits_keeps_its_tones(tmp_path: Path) -> None:
    """Microscopes, depth cameras and scanners write these. The upper eight bits are what a screen shows."""
    grey = np.linspace(0, 65535, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_allclose(read(tmp_path)[0, ..., 0], grey / 257, atol=1)


def test_a_portable_greymap_of_sixteen_bits_keeps_its_tones(tmp_path: Path) -> None:
    """Pillow hands it over as numbers of 32 bits."""
    grey = np.linspace(0, 65535, SIZE * SIZE).reshape(SIZE, SIZE).astype(">u2")
    (tmp_path / "grey.ppm").write_bytes(f"P5 {SIZE} {SIZE} 65535\n".encode() + grey.tobytes())
    np.testing.assert_allclose(read(tmp_path)[0, ..., 0], grey / 257, atol=1)


def test_grey_of_sixteen_bits_with_transparency_is_laid_over_white(tmp_path: Path) -> None:
    """A neighbour of the value that stands for transparent has the same upper bits, and is none."""
    grey = np.full((SIZE, SIZE), 0x6401, dtype=np.uint16)
    grey[0] = 0x6400
    Image.fromarray(grey).save(tmp_path / "grey.png", transparency=0x6400)
    pixels = read(tmp_path)[0]
    assert (pixels[0] == 255).all()
    assert (pixels[1:] == 0x64).all()


@pytest.mark.parametrize(("dtype", "numbers"), [(np.int32, "whole"), (np.float32, "real")])
def test_numbers_of_which_nobody_knows_what_is_white_are_refused(dtype: Any, numbers: str, tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 65535, SIZE * SIZE).reshape(SIZE, SIZE).astype(dtype)).save(tmp_path / "a.tiff")
    with pytest.raises(
        EdgeSDError, match=rf"a\.tiff is not a readable image: its pixels are {numbers} numbers of no known range"
    ):
        read(tmp_path)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((SIZE, SIZE, 4), dtype=np.uint8)
    rgba[0], rgba[1], rgba[2] = (255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    rows = read(tmp_path)[0, :, 0].tolist()
    assert rows[0] == [255, 0, 0]
    assert rows[1] == rows[3] == [255, 255, 255]
    assert rows[2] == pytest.approx([127] * 3, abs=1)


def test_grey_with_transparency_is_laid_over_white(tmp_path: Path) -> None:
    Image.new("LA", (SIZE, SIZE), (10, 0)).save(tmp_path / "la.png")
    assert (read(tmp_path) == 255).all()


def test_palettes_are_looked_up_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (SIZE, SIZE), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "a.png")
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "b.png", transparency=0)
    opaque, transparent = read(tmp_path)
    assert (opaque == (10, 20, 30)).all()
    assert transparent[0, 0].tolist() == [255, 255, 255]
    assert (transparent[1:] == (10, 20, 30)).all()


@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_a_photograph_is_turned_as_its_camera_was(orientation: int, turned: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture().save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path)[0], np.rot90(np.asarray(picture()), turned))


# Sizes


def test_another_size_is_refused_by_name_without_resize(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    picture(width=SIZE, height=12).save(tmp_path / "b.png")
    with pytest.raises(EdgeSDError, match=rf"b\.png is 8×12, and the model takes {SIZE}×{SIZE}") as caught:
        read(tmp_path)
    assert "--resize" in caught.value.hint


def test_resize_crops_the_centre_of_the_shorter_side(tmp_path: Path) -> None:
    wide = np.zeros((SIZE, 3 * SIZE, 3), dtype=np.uint8)
    wide[:, SIZE : 2 * SIZE] = np.asarray(picture())
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wide.swapaxes(0, 1)).save(tmp_path / "b.png")
    Image.new("RGB", (40, 50), (1, 2, 3)).save(tmp_path / "c.png")
    Image.new("RGB", (3, 2), (4, 5, 6)).save(tmp_path / "d.png")
    wide_one, tall_one, large, small = read(tmp_path, resize=True)
    np.testing.assert_array_equal(wide_one, np.asarray(picture()))
    np.testing.assert_array_equal(tall_one, np.asarray(picture()).swapaxes(0, 1))
    assert (large == (1, 2, 3)).all()
    assert (small == (4, 5, 6)).all()


def test_an_image_of_the_right_size_is_not_touched_by_resize(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path, resize=True)[0], np.asarray(picture()))


def test_an_image_too_small_to_be_scaled_is_broken(tmp_path: Path) -> None:
    """Of one pixel nothing can be learnt; without --resize it is an image of another size."""
    picture().save(tmp_path / "a.png")
    picture(width=1, height=1).save(tmp_path / "b.png")
    picture(width=SIZE, height=1).save(tmp_path / "c.png")
    picture(width=2, height=SIZE).save(tmp_path / "d.png")
    data = open_data(DataConfig(source=str(tmp_path), resize=True, max_broken=2), SIZE)
    assert [str(skip).rpartition("/")[2] for skip in data.skipped] == [
        "b.png is 1×1, too small to be scaled to 8",
        "c.png is 8×1, too small to be scaled to 8",
    ]
    assert len(data) == 2
    (tmp_path / "c.png").unlink()
    with pytest.raises(EdgeSDError, match=r"b\.png is 1×1, and the model takes 8×8"):
        open_data(DataConfig(source=str(tmp_path), max_broken=2), SIZE)


def test_with_a_crop_images_are_read_larger(tmp_path: Path) -> None:
    picture(width=SIZE + 4, height=SIZE + 4).save(tmp_path / "a.png")
    data = open_data(DataConfig(source=str(tmp_path), crop=4), SIZE)
    assert (data.pixels.shape, data.crop) == ((1, 3, 12, 12), 4)
    np.testing.assert_array_equal(data.centre, data.pixels[:, :, 2:10, 2:10])
    assert np.shares_memory(data.centre, data.pixels)
    assert open_data(DataConfig(count=1, crop=3), SIZE).centre.shape == (1, 3, SIZE, SIZE)
    picture().save(tmp_path / "a.png")
    with pytest.raises(EdgeSDError, match="is 8×8, and the model takes 8×8, read at 12×12 for a crop of 4"):
        open_data(DataConfig(source=str(tmp_path), crop=4), SIZE)
    assert open_data(DataConfig(source=str(tmp_path), crop=4, resize=True), SIZE).pixels.shape == (1, 3, 12, 12)


# Damage


def test_a_missing_folder_and_a_file_that_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere is not a folder or a file"):
        read(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file holds no images"):
        read(tmp_path / "file")


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UsageError, match=f"{re.escape(str(tmp_path))} holds no images") as caught:
        read(tmp_path)
    assert ".png" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"a text that calls itself an image", bytes(1000)])
def test_a_file_that_is_no_image_is_named(content: bytes, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(EdgeSDError, match=r"b\.png is not a readable image"):
        read(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".ppm", ".tiff"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_an_image_that_was_cut_short_is_named(suffix: str, share: float, tmp_path: Path) -> None:
    picture(width=64, height=64).save(tmp_path / f"a{suffix}")
    data = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"a{suffix}").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(EdgeSDError, match=rf"a\{suffix} is not a readable image"):
        read(tmp_path, 64)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # a damaged size
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["PNG", "JPEG", "WEBP", "PPM"]), data=st.data())
def test_any_damage_gives_pixels_or_an_error_of_ours(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture().save(buffer, kind)
    damaged = bytearray(buffer.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    (tmp_path / "a.png").write_bytes(damaged)
    try:
        outcome: Any = read(tmp_path, resize=True).shape
    except EdgeSDError as error:
        outcome = error.message
    assert outcome == (1, SIZE, SIZE, 3) or "a.png is not a readable image" in outcome


# Keys


def test_a_key_stands_for_the_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture().save(tmp_path / f"{name}.png")
    config = DataConfig(source=str(tmp_path))
    key = source_key(config)
    assert key == source_key(DataConfig(source=str(tmp_path), max_broken=3, cache=tmp_path / "cache", seed=5))
    others = [{"resize": True}, {"crop": 2}, {"limit": 1}, {"labels": True}]
    keys = {key, *(source_key(DataConfig(source=str(tmp_path), **changes)) for changes in others)}
    picture(1).save(tmp_path / "b.png")
    keys.add(source_key(config))
    (tmp_path / "b.png").unlink()
    assert len({*keys, source_key(config)}) == 7
    assert not (tmp_path / "cache").exists()
    with pytest.raises(UsageError, match="nowhere is not"):
        source_key(DataConfig(source=str(tmp_path / "nowhere")))


def test_keys_of_runs_from_before_there_were_other_settings_hold(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    stat = (tmp_path / "a.png").stat()
    assert source_key(DataConfig(source=str(tmp_path))) == fingerprint(
        {str(tmp_path / "a.png"): (stat.st_size, stat.st_mtime_ns)}
    )
    old = {"source": "dead-leaves", "resize": False, "count": 9, "seed": 3, "min_radius": 1.0}
    assert source_key(DataConfig(count=9, seed=3)) == fingerprint(old)
    assert source_key(DataConfig(count=9, seed=3, limit=5)) != fingerprint(old)


def test_local_files_are_read_without_a_network_and_leave_nothing_at_home(
    write_parquet: Any, write_tar: Any, pictures: Any, tmp_path: Path
) -> None:
    """In a process of its own: where the libraries keep things is settled when they are imported."""
    write_parquet(tmp_path / "a.parquet", pictures(2))
    write_tar(tmp_path / "a.tar", [{"png": image} for image in pictures(2)])
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()
    code = (
        "import socket, sys\n"
        "def refuse(*arguments, **options):\n"
        "    print(f'a connection: {arguments}')  # an error alone might be caught\n"
        "    raise OSError\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from edge_sd.data import DataConfig, open_data\n"
        "for name in sys.argv[1:]: assert len(open_data(DataConfig(source=name), 8)) == 2\n"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_", "EDGE_SD"))}
    environment = {**kept, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    sources = [str(tmp_path / "a.parquet"), str(tmp_path / "a.tar")]
    done = subprocess.run([sys.executable, "-c", code, *sources], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list((tmp_path / "home").rglob("*"))
    assert not list((tmp_path / "tmp").rglob("*"))
