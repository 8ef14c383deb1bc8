"""Latents are computed once and found again, under the hash of images and autoencoder; and they are what a denoiser wants."""

import multiprocessing
import runpy
import signal
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from edge_sd.autoencoder import AutoencoderFile, Codec, _ForeignEncoder, open_autoencoder
from edge_sd.checkpoint import Provenance
from edge_sd.data import DataConfig, ImageData, open_data
from edge_sd.decoder import latent_space
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import read_tensors, tensors_digest, write_tensors
from edge_sd.latent_file import LatentsHeader
from edge_sd.latents import BATCH, encode_data
from edge_sd.models.autoencoder import Autoencoder, AutoencoderConfig


class Counted(torch.nn.Module):
    """An encoder that says how often it was called."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder, self.calls = encoder, 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        out: torch.Tensor = self.encoder(image)
        return out


def own_codec(seed: int = 0, **changes: int) -> Codec:
    torch.manual_seed(seed)
    model = Autoencoder(AutoencoderConfig.model_validate({"width": 4, "latent_channels": 3, **changes})).eval()
    model.standardise(torch.tensor([0.1, -0.2, 0.3]), torch.tensor([0.5, 0.7, 2.0]))
    file = AutoencoderFile.of(model, Provenance(made_by="train-autoencoder"))
    return Codec(file.build().encoder.requires_grad_(False), file.decoder(), own=True)


def foreign_codec(folder: Path, **changes: Any) -> tuple[Any, Codec]:
    settings: dict[str, Any] = {
        "block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 3, "scaling_factor": 0.4, "shift_factor": 0.2,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    }  # fmt: skip
    torch.manual_seed(1)
    theirs = diffusers.AutoencoderKL(**{**settings, **changes}).eval()
    theirs.save_pretrained(folder)
    return theirs, open_autoencoder(folder)


def counted(codec: Codec) -> tuple[Codec, Counted]:
    encoder = Counted(codec.encoder)
    return replace(codec, encoder=encoder), encoder


def kept(folder: Path) -> list[Path]:
    """The files that another command would find; a lock is none."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.exists() else []


def tensor_of(data: ImageData) -> torch.Tensor:
    return torch.from_numpy(data.pixels.astype(np.float32) / 127.5 - 1)


@pytest.fixture
def codec() -> Codec:
    return own_codec()


# What is encoded


@torch.no_grad()
def test_every_image_and_its_mirror_image(codec: Codec, tiny_data: ImageData, tmp_path: Path) -> None:
    latents = encode_data(tiny_data, codec, tmp_path)
    assert (latents.latents.shape, latents.latents.dtype) == ((32, 2, 3, 4, 4), np.float16)
    images = tensor_of(tiny_data)
    for way, expected in enumerate((codec.encoder(images), codec.encoder(images.flip(-1)))):
        np.testing.assert_allclose(latents.latents[:, way], expected.numpy(), rtol=2**-10, atol=1e-6)
    assert np.abs(latents.latents[:, 0] - latents.latents[:, 1, ..., ::-1]).max() > 0.1, "a latent's mirror image is another"
    assert (len(latents), latents.labels) == (32, None)
    assert latents.about == f"{tiny_data.about}, as latents"
    assert latents.decoder is codec.decoder
    assert latents.latent_space == codec.latent_space


def test_batches_are_seams_that_do_not_show(codec: Codec, tmp_path: Path) -> None:
    data, told = open_data(DataConfig(count=BATCH + 3), 8), []
    latents = encode_data(data, codec, tmp_path, lambda done, total: told.append((done, total)))
    assert told == [(BATCH, BATCH + 3), (BATCH + 3, BATCH + 3)]
    with torch.no_grad():
        expected = codec.encoder(tensor_of(data)).numpy()
    np.testing.assert_allclose(latents.latents[:, 0], expected, rtol=2**-10, atol=1e-5)


def test_labels_stay_with_their_images(codec: Codec, tiny_data: ImageData, tmp_path: Path) -> None:
    labels = np.arange(32, dtype=np.int64) % 5
    latents = encode_data(replace(tiny_data, labels=labels, digest="labelled"), codec, tmp_path)
    np.testing.assert_array_equal(latents.labels, labels)
    again = encode_data(replace(tiny_data, labels=labels, digest="labelled"), codec, tmp_path)
    np.testing.assert_array_equal(again.labels, labels)


@pytest.mark.parametrize("kind", ["KL", "VQ"])
@torch.no_grad()
def test_a_foreign_autoencoders_scale_is_measured(kind: str, tiny_data: ImageData, tmp_path: Path) -> None:
    """Its configuration may say anything; decoded, the latents are still its own images."""
    if kind == "KL":
        theirs, codec = foreign_codec(tmp_path / "theirs")
        expected = theirs.decode(theirs.encode(tensor_of(tiny_data)).latent_dist.mode()).sample
    else:
        torch.manual_seed(2)
        theirs = diffusers.VQModel(
            block_out_channels=(8, 16), norm_num_groups=4, num_vq_embeddings=7, latent_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ).eval()  # fmt: skip
        theirs.save_pretrained(tmp_path / "theirs")
        codec = open_autoencoder(tmp_path / "theirs")
        expected = theirs.decode(theirs.encode(tensor_of(tiny_data)).latents).sample
    latents = encode_data(tiny_data, codec, tmp_path / "cache")
    values = latents.latents.astype(np.float64)
    assert abs(values.mean()) < 1e-3
    assert abs(values.std() - 1) < 1e-3
    header = latents.decoder.header
    assert header.latent_scale != pytest.approx(codec.decoder.header.latent_scale, rel=0.05)
    assert latents.latent_space == latent_space(latents.decoder) != codec.latent_space
    back = latents.decoder.build()(torch.from_numpy(latents.latents[:, 0].astype(np.float32)))
    close = (back - expected).abs().amax((1, 2, 3)) < 0.02 * expected.std()
    assert close.all() if kind == "KL" else close.sum() > 16, "float16 may put a cell on a border nearer to another entry"


def test_the_scale_that_a_folder_names_does_not_matter(tiny_data: ImageData, tmp_path: Path) -> None:
    """It is measured on the images: two copies that differ by it alone give the same latents."""
    _, one = foreign_codec(tmp_path / "one")
    _, other = foreign_codec(tmp_path / "other", scaling_factor=7.0, shift_factor=-3.0)
    first, second = (encode_data(tiny_data, codec, tmp_path / "cache") for codec in (one, other))
    np.testing.assert_array_equal(first.latents, second.latents)
    assert first.decoder.header.latent_scale == second.decoder.header.latent_scale
    assert first.latent_space == second.latent_space


# The cache


def test_it_is_found_again_without_encoding(codec: Codec, tiny_data: ImageData, tmp_path: Path) -> None:
    one, encoder = counted(codec)
    first = encode_data(tiny_data, one, tmp_path)
    (path,) = tmp_path.glob("[!.]*")
    assert path.name.startswith("latents-")
    before, calls = path.stat(), encoder.calls
    assert calls > 0
    told: list[int] = []
    second = encode_data(tiny_data, one, tmp_path, lambda done, total: told.append(done))
    assert (encoder.calls, told) == (calls, [])
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    np.testing.assert_array_equal(first.latents, second.latents)
    assert (first.digest, first.latent_space, first.about) == (second.digest, second.latent_space, second.about)


def test_a_foreign_ones_measured_scale_is_found_again_too(tiny_data: ImageData, tmp_path: Path) -> None:
    _, codec = foreign_codec(tmp_path / "theirs")
    first, second = (encode_data(tiny_data, codec, tmp_path / "cache") for _ in range(2))
    assert first.decoder.header == second.decoder.header
    assert (first.digest, first.latent_space) == (second.digest, second.latent_space)
    assert len(list((tmp_path / "cache").glob("[!.]*"))) == 1


def test_other_images_or_another_autoencoder_are_another_file(codec: Codec, tiny_data: ImageData, tmp_path: Path) -> None:
    """Another encoder before the same decoder too: the latent space is the same, its latents are not."""
    other_images = open_data(DataConfig(count=32, seed=1), 16)
    encoder = own_codec(seed=2).encoder
    made = [
        encode_data(data, one, tmp_path)
        for data, one in (
            (tiny_data, codec), (other_images, codec), (tiny_data, own_codec(1)), (tiny_data, replace(codec, encoder=encoder)),
        )
    ]  # fmt: skip
    assert len(list(tmp_path.glob("[!.]*"))) == 4
    assert len({latents.digest for latents in made}) == 4
    assert made[0].latent_space == made[1].latent_space == made[3].latent_space != made[2].latent_space
    assert len({latents.latents.tobytes() for latents in made}) == 4


@pytest.mark.parametrize("damage", ["cut short", "one bit", "text", "of other images", "of another version", "other tensors"])
def test_a_damaged_file_is_made_anew(damage: str, codec: Codec, tiny_data: ImageData, tmp_path: Path) -> None:
    first = encode_data(tiny_data, codec, tmp_path).latents.copy()  # the file that it maps is about to change
    (path,) = tmp_path.glob("[!.]*")
    whole, tensors = path.read_bytes(), load_file(path)
    header = LatentsHeader(data_digest="x", autoencoder="y", latent_scale=1, latent_shift=0, digest="z").model_dump_json()
    if damage == "cut short":
        path.write_bytes(whole[:-5])
    elif damage == "one bit":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "text":
        path.write_text("latents")
    elif damage == "other tensors":
        save_file({"other": tensors["latents"]}, path, metadata={"edge_sd": header})
    else:
        text = header if damage == "of other images" else '{"schema_version": 9}'
        save_file(tensors, path, metadata={"edge_sd": text})
    again = encode_data(tiny_data, codec, tmp_path)
    np.testing.assert_array_equal(again.latents, first)
    assert path.read_bytes() == whole


KILLED = """
import time
import torch
torch.set_num_threads(1)
from pathlib import Path
from edge_sd import latents
from edge_sd.autoencoder import open_autoencoder
from edge_sd.data import DataConfig, open_data

def observe(done, total):  # so that the kill meets a file that is half written
    told.send("half")
    time.sleep(60)

data = open_data(DataConfig(count=latents.BATCH + 1), 16)
latents.encode_data(data, open_autoencoder(Path(autoencoder)), Path(cache), observe)
"""


def test_a_kill_leaves_no_half_file_to_be_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    autoencoder, cache, script = tmp_path / "autoencoder.safetensors", tmp_path / "cache", tmp_path / "killed.py"
    AutoencoderFile.of(Autoencoder(AutoencoderConfig(width=4)), Provenance(made_by="train-autoencoder")).save(autoencoder)
    script.write_text(KILLED)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["edge_sd.latents"])
    receiver, sender = processes.Pipe(duplex=False)
    texts = {"autoencoder": str(autoencoder), "cache": str(cache), "told": sender}
    process = processes.Process(target=runpy.run_path, args=(str(script), texts))
    process.start()
    sender.close()
    assert receiver.recv() == "half"
    time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(cache.glob(".*.part"))
    assert not kept(cache)
    codec = open_autoencoder(autoencoder)
    latents = encode_data(open_data(DataConfig(count=BATCH + 1), 16), codec, cache)
    (path,) = kept(cache)
    assert not list(cache.glob(".*.part")), "what the kill left is cleared away"
    np.testing.assert_array_equal(load_file(path)["latents"], latents.latents)


def test_where_latents_lie(codec: Codec, tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_SD_CACHE", str(tmp_path / "named"))
    encode_data(tiny_data, codec)
    monkeypatch.delenv("EDGE_SD_CACHE")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    encode_data(tiny_data, codec)
    found = [path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("latents-*.safetensors")]
    assert sorted(found) == ["home/.cache/edge-sd", "named"]


# What is refused


@pytest.mark.parametrize("size", [10, 18])
def test_images_that_ours_cannot_halve_so_often(size: int, codec: Codec, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be halved"):
        encode_data(open_data(DataConfig(count=2), size), codec, tmp_path)
    assert not list(tmp_path.glob("[!.]*"))


def test_images_that_come_back_in_another_size(tmp_path: Path) -> None:
    """A stride of two makes 8 of 17 pixels, and 16 of these: the model's pictures would not be the data's."""
    _, codec = foreign_codec(tmp_path / "theirs")
    with pytest.raises(UsageError, match=r"images of 17 px come latents of 8×8, and of these images of 16 px") as refused:
        encode_data(open_data(DataConfig(count=2), 17), codec, tmp_path / "cache")
    assert "multiple of 2" in refused.value.hint
    assert not kept(tmp_path / "cache")


def test_images_too_small_for_a_foreign_autoencoder(tmp_path: Path) -> None:
    _, codec = foreign_codec(tmp_path / "theirs", block_out_channels=(8, 8, 8, 8, 8, 8),
                             down_block_types=("DownEncoderBlock2D",) * 6, up_block_types=("UpDecoderBlock2D",) * 6)  # fmt: skip
    with pytest.raises(EdgeSDError, match="images of"):
        encode_data(open_data(DataConfig(count=2), 12), codec, tmp_path / "cache")
    assert not kept(tmp_path / "cache")


def test_images_with_a_margin(codec: Codec, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="windows cannot be cut") as refused:
        encode_data(open_data(DataConfig(count=2, crop=4), 16), codec, tmp_path)
    assert "--crop" in refused.value.hint


class Constant(torch.nn.Module):
    """Returns one number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.full((len(image), 3, 4, 4), self.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_latents_that_no_file_can_hold(value: float, codec: Codec, tiny_data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(EdgeSDError, match="latents are not finite"):
        encode_data(tiny_data, replace(codec, encoder=Constant(value)), tmp_path)
    assert not list(tmp_path.glob("[!.]*"))


class Pooling(torch.nn.Module):
    """Means of squares: an encoder that costs nothing, alone or as diffusers' `encode`."""

    def __init__(self, factor: int, constant: float | None = None) -> None:
        super().__init__()
        self.factor, self.constant = factor, constant

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pooled = torch.nn.functional.avg_pool2d(image, self.factor)
        return pooled if self.constant is None else torch.full_like(pooled, self.constant)

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        return (self(image),)


def pooling(codec: Codec, factor: int, constant: float | None = None) -> Codec:
    module = Pooling(factor, constant)
    return replace(codec, encoder=module if codec.own else _ForeignEncoder(module, 1.0, 0.0))


def test_images_of_one_colour_have_no_scale(tiny_data: ImageData, tmp_path: Path) -> None:
    _, codec = foreign_codec(tmp_path / "theirs")
    with pytest.raises(EdgeSDError, match="all latents of these images are 2"):
        encode_data(tiny_data, pooling(codec, 2, 2.0), tmp_path / "cache")
    assert not kept(tmp_path / "cache")


# How much is held at once


@pytest.mark.parametrize("own", [True, False])
def test_latents_are_never_held_whole(own: bool, tiny_data: ImageData, tmp_path: Path) -> None:
    codec = pooling(own_codec() if own else foreign_codec(tmp_path / "theirs")[1], 4 if own else 2)
    count = 2**15 if own else 2**13
    data = replace(tiny_data, pixels=np.broadcast_to(tiny_data.pixels[:1], (count, 3, 16, 16)), digest="many")
    for _ in range(2):  # encoded, then found
        tracemalloc.start()
        latents = encode_data(data, codec, tmp_path / "cache")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert latents.latents.nbytes == count * 2 * 3 * (4 * 4 if own else 8 * 8) * 2
        assert peak < latents.latents.nbytes / 2


@pytest.mark.parametrize("own", [True, False])
def test_the_files_digest_is_that_of_all_files_of_tensors(own: bool, tmp_path: Path) -> None:
    """So that files that were written whole, before, are found too."""
    codec = own_codec() if own else foreign_codec(tmp_path / "theirs")[1]
    data = open_data(DataConfig(count=BATCH + 3), 8)
    latents = encode_data(data, codec, tmp_path / "cache")
    (path,) = kept(tmp_path / "cache")
    header, tensors = read_tensors(LatentsHeader, path)
    assert header.digest == tensors_digest(tensors)
    np.testing.assert_array_equal(tensors["latents"], latents.latents)
    write_tensors(path, tensors, header)
    before = path.stat().st_ino
    np.testing.assert_array_equal(encode_data(data, codec, tmp_path / "cache").latents, latents.latents)
    assert path.stat().st_ino == before


def test_a_full_disk_is_named(codec: Codec, tiny_disk: Path) -> None:
    with pytest.raises(EdgeSDError, match="cannot keep latents in") as refused:
        encode_data(open_data(DataConfig(count=512), 16), codec, tiny_disk)
    assert "--cache" in refused.value.hint
    assert not kept(tiny_disk)


class Narrow(torch.nn.Module):
    """An encoder on a machine whose memory holds `room` images at once."""

    def __init__(self, encoder: torch.nn.Module, room: int, error: RuntimeError) -> None:
        super().__init__()
        self.encoder, self.room, self.error, self.sizes = encoder, room, error, list[int]()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(image))
        if len(image) > self.room:
            raise self.error
        out: torch.Tensor = self.encoder(image)
        return out


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["accelerator", "CPU"])
def test_where_memory_is_short_batches_are_halved(error: RuntimeError, codec: Codec, tmp_path: Path) -> None:
    data, narrow = open_data(DataConfig(count=BATCH + 3), 16), Narrow(codec.encoder, 20, error)
    told: list[int] = []
    latents = encode_data(data, replace(codec, encoder=narrow), tmp_path, lambda done, total: told.append(done))
    assert narrow.sizes[:4] == [64, 32, 16, 16]
    assert told == [16, 32, 48, 64, 67]
    with torch.no_grad():
        expected = codec.encoder(tensor_of(data)).numpy()
    np.testing.assert_allclose(latents.latents[:, 0], expected, rtol=2**-10, atol=1e-5)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["accelerator", "CPU"])
def test_memory_that_holds_no_image(error: RuntimeError, codec: Codec, tiny_data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(EdgeSDError, match=r"encoding one image of \(3, 16, 16\) takes more memory than cpu has free"):
        encode_data(tiny_data, replace(codec, encoder=Narrow(codec.encoder, 0, error)), tmp_path)
    assert not kept(tmp_path)


def test_an_error_in_a_later_batch_is_not_about_the_size(codec: Codec, tmp_path: Path) -> None:
    class Failing(Narrow):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if len(self.sizes) == 2:
                raise self.error
            return super().forward(image)

    failing = Failing(codec.encoder, BATCH, RuntimeError("the device is gone"))
    with pytest.raises(RuntimeError, match="the device is gone"):
        encode_data(open_data(DataConfig(count=BATCH + 3), 16), replace(codec, encoder=failing), tmp_path)
    assert not kept(tmp_path)
