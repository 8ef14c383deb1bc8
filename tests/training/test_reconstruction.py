"""Training an autoencoder: its loss by hand, what is measured at its end, and a run that is cut ends as one that was not."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pywt
import torch
from PIL import Image

from edge_sd.autoencoder import AutoencoderFile, open_autoencoder
from edge_sd.data import DataConfig, ImageData, open_data
from edge_sd.data.images import grid, rgb
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.models.autoencoder import Autoencoder, AutoencoderConfig
from edge_sd.training import Progress, TrainConfig, fit_autoencoder
from edge_sd.training.learner import PREVIEWS
from edge_sd.training.loop import METRICS, STATE
from edge_sd.training.reconstruction import LATENT_WEIGHT, LEVELS, AutoencoderLearner
from edge_sd.training.samples import PixelSamples
from edge_sd.training.state import read_metrics

NAME = "autoencoder.safetensors"
MODEL = AutoencoderConfig(width=6, latent_channels=3, decoder_blocks=1)
TRAIN = TrainConfig(
    steps=8, batch_size=4, warmup=2, learning_rate=2e-3, weight_decay=0.0, precision="fp32", save_every=3, sample_every=0
)


def fit(
    out: Path,
    data: ImageData,
    *,
    until: int | None = None,
    overwrite: bool = False,
    model: dict[str, Any] | None = None,
    observe: Callable[[Progress], None] = lambda progress: None,
    **train: Any,
) -> AutoencoderFile:
    """A run, with changes, to the end or `until` a step is done."""

    def watch(progress: Progress) -> None:
        observe(progress)
        if progress.step == until:
            raise KeyboardInterrupt

    config = AutoencoderConfig.model_validate({**MODEL.model_dump(), **(model or {})})
    return fit_autoencoder(
        config, data, TrainConfig.model_validate({**TRAIN.model_dump(), **train}), out, overwrite=overwrite, observe=watch
    )


def learner(**changes: Any) -> AutoencoderLearner:
    torch.manual_seed(0)
    return AutoencoderLearner(Autoencoder(AutoencoderConfig.model_validate({**MODEL.model_dump(), **changes})))


# The loss


@pytest.mark.parametrize("factor", [4, 8])
@torch.no_grad()
def test_the_loss_by_hand(factor: int, tiny_data: ImageData) -> None:
    """|x − x̂| + Σ |details| of two levels, each level's mean in the units of a pixel, + 1e-3·z²; with PyWavelets in float64."""
    ours = learner(factor=factor, noise=0.3).double()
    image, noise = (value.double() for value in ours.draw(PixelSamples(tiny_data), TRAIN, 0, slice(0, 4)))
    z = ours.model.encoder.raw(image)
    difference = (ours.model.decoder.raw(z + 0.3 * noise) - image).numpy()
    pixels, details, low = np.abs(difference).mean(), 0.0, difference
    for _ in range(2):
        cA, (cH, cV, cD) = pywt.dwt2(low, "haar", "periodization", axes=(-2, -1))
        details += np.mean([np.abs(cH).mean(), np.abs(cV).mean(), np.abs(cD).mean()])
        low = cA / 2
    assert (LEVELS, LATENT_WEIGHT) == (2, 1e-3)
    terms = ours(image, noise)
    assert list(terms) == ["pixels", "details", "latent"]
    assert float(terms["latent"]) == pytest.approx(1e-3 * float((z**2).mean()), rel=1e-6)
    # What comes out of the decoder is compared in float32, whatever it was computed in.
    assert float(terms["pixels"]) == pytest.approx(pixels, rel=1e-6)
    assert float(terms["details"]) == pytest.approx(details, rel=1e-6)


@torch.no_grad()
def test_shares_of_a_batch_add_up(tiny_data: ImageData) -> None:
    ours, samples = learner().eval(), PixelSamples(tiny_data)
    whole = ours(*ours.draw(samples, TRAIN, 2, slice(0, 4)))
    parts = [ours(*ours.draw(samples, TRAIN, 2, slice(start, start + 2))) for start in (0, 2)]
    for name, value in whole.items():
        assert float(value) == pytest.approx(float(parts[0][name] + parts[1][name]) / 2, rel=1e-5)


def test_what_is_drawn_depends_on_seed_and_step_alone(tiny_data: ImageData) -> None:
    ours, samples = learner(), PixelSamples(tiny_data)
    draws = {
        (seed, step): ours.draw(samples, TRAIN.model_copy(update={"seed": seed}), step, slice(0, 4))
        for seed, step in itertools.product((0, 1), (0, 1))
    }
    for image, noise in draws.values():
        assert (image.shape, noise.shape) == ((4, 3, 16, 16), (4, 3, 4, 4))
        assert -1 <= image.min() < image.max() <= 1
    for one, other in itertools.combinations(draws.values(), 2):
        assert not torch.equal(one[0], other[0])
        assert not torch.equal(one[1], other[1])
    again = ours.draw(samples, TRAIN, 1, slice(0, 4))
    assert all(torch.equal(one, other) for one, other in zip(again, draws[0, 1], strict=True))


@torch.no_grad()
def test_the_decoder_sees_noise_and_the_penalty_does_not(tiny_data: ImageData) -> None:
    losses = {}
    for noise in (0.0, 1.0):
        ours = learner(noise=noise)
        losses[noise] = ours(*ours.draw(PixelSamples(tiny_data), TRAIN, 0, slice(0, 4)))
    assert losses[0.0]["latent"] == losses[1.0]["latent"]
    assert losses[0.0]["pixels"] != losses[1.0]["pixels"]


def test_every_weight_learns(tiny_data: ImageData) -> None:
    ours = learner()
    sum(ours(*ours.draw(PixelSamples(tiny_data), TRAIN, 0, slice(0, 4))).values()).backward()
    still = {name for name, value in ours.named_parameters() if value.grad is None or not value.grad.any()}
    # What stands before a block's closing convolution, which starts at zero, learns from the second step on.
    assert {name.split(".")[-2] for name in still} == {"conv1"}


# A run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AutoencoderFile, ImageData]:
    """200 steps on 64 dead leaves of 16 px, large enough to be told from noise at that size."""
    out, data = tmp_path_factory.mktemp("trained") / "out", open_data(DataConfig(count=64, min_radius=4), 16)
    train = {"steps": 200, "batch_size": 8, "learning_rate": 3e-3, "warmup": 10, "decay": "constant", "sample_every": 100}
    return out, fit(out, data, model={"width": 24, "latent_channels": 4, "noise": 0.05}, **train), data


def test_the_loss_falls(trained: tuple[Path, AutoencoderFile, ImageData]) -> None:
    losses = [record["loss"] for record in read_metrics(trained[0] / METRICS)]
    assert len(losses) == 200
    assert all(math.isfinite(loss) for loss in losses)
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])


def test_what_lies_there_at_the_end(trained: tuple[Path, AutoencoderFile, ImageData]) -> None:
    out, file, data = trained
    assert {path.name for path in out.iterdir()} == {NAME, METRICS, "samples"}
    provenance = file.header.provenance
    assert (provenance.made_by, provenance.steps, provenance.images_seen, provenance.parents) == (
        "train-autoencoder",
        200,
        1600,
        {},
    )
    assert (provenance.data, provenance.data_digest) == (data.about, data.digest)
    assert provenance.settings["model"] == file.header.model.model_dump(mode="json")
    codec = open_autoencoder(out / NAME)
    assert codec.own
    assert codec.latent_space == open_autoencoder(out / NAME).latent_space


@torch.no_grad()
def test_mean_and_deviation_are_measured_on_the_data(trained: tuple[Path, AutoencoderFile, ImageData]) -> None:
    _, file, data = trained
    model, images = file.build(), torch.from_numpy(data.pixels.astype(np.float32) / 127.5 - 1)
    raw = model.encoder.raw(images).double()
    mean, std = raw.mean((0, 2, 3)), raw.std((0, 2, 3), correction=0)
    for half in ("encoder", "decoder"):
        np.testing.assert_allclose(file.weights[f"{half}.mean"], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(file.weights[f"{half}.std"], std, rtol=1e-5)
    latents = model.encoder(images)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std((0, 2, 3), correction=0), torch.ones(4), rtol=0, atol=1e-4)


def test_more_images_than_are_measured_at_a_time(tmp_path: Path) -> None:
    """Also where the last pass is not full."""
    data = open_data(DataConfig(count=70), 8)
    file = fit(tmp_path, data, steps=2)
    with torch.no_grad():
        raw = file.build().encoder.raw(torch.from_numpy(data.pixels.astype(np.float32) / 127.5 - 1)).double()
    np.testing.assert_allclose(file.weights["encoder.mean"], raw.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(file.weights["encoder.std"], raw.std((0, 2, 3), correction=0), rtol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 5, 12])
@torch.no_grad()
def test_a_picture_stands_above_what_came_back_of_it(count: int) -> None:
    """Four columns, and each row of images has its own below it, however few images there are."""
    samples, ours = PixelSamples(open_data(DataConfig(count=count), 16)), learner()
    ours.model.standardise(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.2, 0.3]))  # a preview comes before it is measured
    pictures = ours.preview(ours.model, samples, 0)
    assert (pictures.shape, pictures.dtype) == ((PREVIEWS, 16, 16, 3), np.uint8)
    indices = np.arange(8) % count
    images = torch.from_numpy(samples.take(indices, np.zeros(8, bool), np.full((8, 2), 0.5)))
    back = ours.model(images)
    for place, source in ((0, images[:4]), (4, back[:4]), (8, images[4:]), (12, back[4:])):
        difference = pictures[place : place + 4].astype(int) - rgb(source.numpy())
        assert np.abs(difference).max() <= 1
    assert grid(pictures).shape == (4 * 17 - 1, 4 * 17 - 1, 3)


def test_previews_are_written(trained: tuple[Path, AutoencoderFile, ImageData]) -> None:
    out, _, data = trained
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["step_000100.png", "step_000200.png"]
    with Image.open(out / "samples" / "step_000200.png") as image:
        sheet = np.asarray(image)
    np.testing.assert_array_equal(sheet[:16, :16], data.pixels[0].transpose(1, 2, 0))


# Cut and gone on with


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16", "ema_decay": 0.5, "seed": 9, "model": {"factor": 8}}])
def test_a_run_that_was_cut_goes_on_exactly(changes: dict[str, Any], tiny_data: ImageData, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(whole, tiny_data, **changes)
    for until in (4, 7):
        with pytest.raises(KeyboardInterrupt):
            fit(cut, tiny_data, until=until, **changes)
        assert (cut / STATE).exists()
        assert not (cut / NAME).exists()
    steps: list[int] = []
    fit(cut, tiny_data, observe=lambda progress: steps.append(progress.step), **changes)
    assert steps == [7, 8]
    assert (cut / NAME).read_bytes() == (whole / NAME).read_bytes()
    losses = [[record["loss"] for record in read_metrics(out / METRICS)] for out in (whole, cut)]
    assert losses[0] == losses[1]
    assert not (cut / STATE).exists()


def test_a_finished_run_is_returned_as_it_is(tiny_data: ImageData, tmp_path: Path) -> None:
    first, steps = fit(tmp_path, tiny_data, steps=2), list[int]()
    before = (tmp_path / NAME).stat().st_mtime_ns
    again = fit(tmp_path, tiny_data, steps=2, observe=lambda progress: steps.append(progress.step))
    assert again.header == first.header
    assert (steps, (tmp_path / NAME).stat().st_mtime_ns) == ([], before)
    with pytest.raises(EdgeSDError, match=r"model\.noise was 0\.1, now 0\.2"):
        fit(tmp_path, tiny_data, steps=2, model={"noise": 0.2})
    other = fit(tmp_path, tiny_data, steps=2, model={"noise": 0.2}, overwrite=True)
    assert other.header.digest != first.header.digest


# What is refused


@pytest.mark.parametrize(("factor", "size"), [(4, 18), (8, 20)])
def test_images_that_are_no_multiple_of_the_factor(factor: int, size: int, tmp_path: Path) -> None:
    data = open_data(DataConfig(count=4), size)
    with pytest.raises(UsageError, match=f"images of {size} px cannot become latents {factor} times coarser"):
        fit(tmp_path / "out", data, model={"factor": factor})
    assert not (tmp_path / "out").exists()


def test_images_with_a_margin_are_windows_of_the_models_size(tmp_path: Path) -> None:
    """16 px and a margin of 3: the window's size counts, not the image's."""
    data = open_data(DataConfig(count=8, crop=3), 16)
    file = fit(tmp_path / "out", data, steps=2, sample_every=2)
    assert np.isfinite(file.weights["encoder.std"]).all()
    with Image.open(tmp_path / "out" / "samples" / "step_000002.png") as sheet:
        assert sheet.size == (4 * 17 - 1, 4 * 17 - 1)
    with pytest.raises(UsageError, match="images of 18 px"):
        fit(tmp_path / "other", open_data(DataConfig(count=4, crop=2), 18))


def test_a_denoisers_folder_is_not_written_into(tiny_data: ImageData, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"it holds checkpoint\.safetensors"):
        fit(tmp_path, tiny_data, overwrite=True)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == b"precious"


def test_images_of_one_colour_are_learnt_too(tmp_path: Path) -> None:
    """Their latents need not have a deviation; whatever it is, it is no zero to divide by."""
    data = open_data(DataConfig(count=4), 16)
    file = fit(tmp_path, replace(data, pixels=np.full_like(data.pixels, 90)), steps=2)
    assert (file.weights["encoder.std"] > 0).all()
    assert all(np.isfinite(value).all() for value in file.weights.values())
