"""Drawing samples: the same in any number of processes, decoded where they are latents, and clear where a process dies."""

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sd.autoencoder import AutoencoderFile
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.decoder import latent_space
from edge_sd.diffusion import SCHEDULES, compile_plan
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation.draw import (
    CheckpointDrawer,
    Drawer,
    GivenSamples,
    PlanChoice,
    draw,
    labels_of,
    load_samples,
    save_samples,
)
from edge_sd.evaluation.record import Origin
from edge_sd.evaluation.reference import rgb_pixels
from edge_sd.models import ModelConfig
from edge_sd.models.autoencoder import Autoencoder, AutoencoderConfig
from edge_sd.models.unet import SpectralUNet
from edge_sd.sampling import sample_model

MakeModel = Callable[..., SpectralUNet]
Numbered = Callable[..., Drawer]

ORIGIN = Origin(kind="folder", name="photos", digest="0" * 64)
PLAN = PlanChoice(steps=2)


@pytest.fixture
def numbered(monkeypatch: pytest.MonkeyPatch) -> Numbered:
    """`Numbered` of numbered_drawer.py, which other processes find by the path."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("numbered_drawer").Numbered  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("draw") / "checkpoint.safetensors"
    tiny_checkpoint.save(path)
    return path


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_samples_come_in_order_from_any_number_of_processes(numbered: Numbered, processes: int) -> None:
    seen: list[tuple[int, int]] = []
    pixels = draw(numbered(), 23, processes=processes, batch_size=4, observe=lambda done, total: seen.append((done, total)))
    assert pixels[:, 0, 0, 0].tolist() == list(range(23))
    assert pixels.dtype == np.uint8
    assert seen[-1] == (23, 23)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_in_a_process_comes_through_as_it_is(numbered: Numbered, processes: int) -> None:
    with pytest.raises(EdgeSDError, match="image 7 is bad") as raised:
        draw(numbered(bad=7), 20, processes=processes, batch_size=2)
    assert raised.value.hint == "leave it"


def test_a_process_that_dies_is_an_error_and_no_wait(numbered: Numbered) -> None:
    with pytest.raises(EdgeSDError, match="one of the 2 processes that draw samples died") as raised:
        draw(numbered(bad=7, fatal=True), 20, processes=2, batch_size=2)
    assert "--processes" in raised.value.hint


@pytest.mark.parametrize(("count", "processes"), [(0, 1), (1, 0), (-1, 2)])
def test_no_samples_and_no_processes_are_refused(numbered: Numbered, count: int, processes: int) -> None:
    with pytest.raises(UsageError, match="cannot be drawn"):
        draw(numbered(), count, processes=processes)


# A checkpoint


def test_a_checkpoint_draws_what_sampling_draws(checkpoint: Path, tiny_checkpoint: Checkpoint) -> None:
    """Bit for bit, in one process and in two."""
    plan = compile_plan(SCHEDULES["cosine"], prediction="v", steps=2)
    expected = rgb_pixels(sample_model(tiny_checkpoint.build(), plan, seed=5, count=6, batch_size=2))
    drawer = CheckpointDrawer(checkpoint, PLAN, seed=5)
    np.testing.assert_array_equal(draw(drawer, 6, batch_size=2, threads=1), expected)
    np.testing.assert_array_equal(draw(drawer, 6, batch_size=2, threads=1, processes=2), expected)


def test_another_batch_size_changes_no_more_than_rounding(checkpoint: Path) -> None:
    drawer = CheckpointDrawer(checkpoint, PLAN)
    one, other = (draw(drawer, 5, batch_size=size).astype(int) for size in (1, 5))
    assert np.abs(one - other).max() <= 1


def test_its_origin_says_how_it_was_drawn(checkpoint: Path, tiny_checkpoint: Checkpoint) -> None:
    drawer = CheckpointDrawer(checkpoint, PlanChoice(solver="ddim", steps=4, eta=1.0), seed=9)
    origin = drawer.origin
    assert drawer.size == 16
    assert (origin.kind, origin.name, origin.digest) == ("checkpoint", "checkpoint.safetensors", tiny_checkpoint.header.digest)
    assert (origin.runtime, origin.solver, origin.steps, origin.nfe, origin.seed) == ("torch", "ddim", 4, 4, 9)
    assert origin.stochastic


def test_classes_are_drawn_in_turn_or_one_alone(make_model: MakeModel, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    header = tiny_checkpoint.header
    model = make_model(num_classes=3)
    path = tmp_path / "classes.safetensors"
    Checkpoint.of(model, header.noise_schedule, header.prediction, header.provenance).save(path)
    turn = CheckpointDrawer(path, PLAN)
    assert turn.origin.labels == "3 classes in turn"
    pixels = draw(turn, 6, batch_size=6).astype(int)
    for label in range(3):
        alone = CheckpointDrawer(path, PLAN, label=label)
        assert alone.origin.labels == f"class {label}"
        np.testing.assert_allclose(pixels[label::3], draw(alone, 6, batch_size=6).astype(int)[label::3], atol=1)
    with pytest.raises(UsageError, match="one of 3 classes"):
        draw(CheckpointDrawer(path, PLAN, label=3), 2)


def test_a_class_is_not_asked_of_a_model_without(tiny_config: ModelConfig) -> None:
    assert labels_of(tiny_config, None) == ((), "")
    with pytest.raises(UsageError, match="knows no classes"):
        labels_of(tiny_config, 0)


def test_latents_without_their_decoder_are_refused(make_model: MakeModel, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    header = tiny_checkpoint.header
    latents = header.provenance.model_copy(update={"parents": {"autoencoder": "b" * 64}})
    for channels, provenance in ((4, header.provenance), (3, latents)):
        path = tmp_path / f"{channels}.safetensors"
        model = make_model(in_channels=channels, out_channels=channels)
        Checkpoint.of(model, header.noise_schedule, header.prediction, provenance).save(path)
        with pytest.raises(EdgeSDError, match="no decoder is beside it"):
            draw(CheckpointDrawer(path, PLAN), 2)


def test_latents_are_decoded_by_the_decoder_beside_them(
    make_model: MakeModel, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(width=4, latent_channels=4)).eval()
    decoder = AutoencoderFile.of(autoencoder, Provenance(made_by="test")).decoder()
    decoder.save(tmp_path / "decoder.safetensors")
    header, path = tiny_checkpoint.header, tmp_path / "checkpoint.safetensors"
    provenance = header.provenance.model_copy(update={"parents": {"autoencoder": latent_space(decoder)}})
    model = make_model(in_channels=4, out_channels=4)
    Checkpoint.of(model, header.noise_schedule, header.prediction, provenance).save(path)
    plan = compile_plan(header.noise_schedule, prediction=header.prediction, steps=2)
    with torch.no_grad():
        expected = rgb_pixels(decoder.build()(torch.from_numpy(sample_model(model, plan, count=3))).numpy())
    drawer = CheckpointDrawer(path, PLAN)
    assert drawer.size == expected.shape[-1] == 64
    np.testing.assert_allclose(draw(drawer, 3).astype(int), expected.astype(int), atol=1)


# Samples that are there


def test_samples_are_kept_with_their_origin(numbered: Numbered, tmp_path: Path) -> None:
    pixels = draw(numbered(), 5)
    save_samples(tmp_path / "samples.safetensors", pixels, ORIGIN)
    found, origin = load_samples(tmp_path / "samples.safetensors")
    np.testing.assert_array_equal(found, pixels)
    assert origin == ORIGIN
    given = GivenSamples(found, origin)
    assert (given.size, given.origin) == (2, ORIGIN)
    np.testing.assert_array_equal(draw(given, 3, processes=4, batch_size=2), pixels[:3])
    with pytest.raises(UsageError, match="there are 5 samples"):
        draw(given, 6)


def test_a_file_of_something_else_is_refused(checkpoint: Path) -> None:
    with pytest.raises(EdgeSDError, match="SamplesHeader"):
        load_samples(checkpoint)
