"""Denoising latents: the decoder lies beside the checkpoint, and what does not belong together is refused; and classes."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edge_sd.autoencoder import AutoencoderFile, Codec
from edge_sd.checkpoint import Checkpoint, Provenance, load_checkpoint
from edge_sd.data import ImageData
from edge_sd.decoder import latent_space, load_decoder
from edge_sd.diffusion import SCHEDULES
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.foreign import open_model
from edge_sd.latents import LatentData, encode_data
from edge_sd.models import ModelConfig
from edge_sd.models.autoencoder import Autoencoder, AutoencoderConfig
from edge_sd.models.unet import SpectralUNet
from edge_sd.training import DistillConfig, Progress, TrainConfig, distill, fit
from edge_sd.training.fit import DECODER
from edge_sd.training.loop import CHECKPOINT, METRICS
from edge_sd.training.samples import LatentSamples, PixelSamples

SCHEDULE = SCHEDULES["cosine"]
TRAIN = TrainConfig(steps=3, batch_size=4, warmup=1, precision="fp32", save_every=2, sample_every=0)
LATENT = ModelConfig(
    image_size=4, in_channels=4, out_channels=4, width=8, multipliers=(1, 2), blocks=1, attention=(2,), head_channels=8,
    norm_groups=4,
)  # fmt: skip


def codec_of(seed: int) -> Codec:
    torch.manual_seed(seed)
    model = Autoencoder(AutoencoderConfig(width=4)).eval()
    model.standardise(torch.full((4,), 0.1), torch.full((4,), 0.4))
    file = AutoencoderFile.of(model, Provenance(made_by="train-autoencoder"))
    return Codec(file.build().encoder.requires_grad_(False), file.decoder(), own=True)


def changed(config: ModelConfig, **changes: Any) -> ModelConfig:
    return ModelConfig.model_validate({**config.model_dump(), **changes})


@pytest.fixture(scope="module")
def latents(tiny_data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> LatentData:
    """Of 32 dead leaves of 16 px: 4×4×4."""
    return encode_data(tiny_data, codec_of(0), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def others(tiny_data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> LatentData:
    """The same images by another autoencoder."""
    return encode_data(tiny_data, codec_of(1), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def labelled(latents: LatentData) -> LatentData:
    """With three classes."""
    labels = np.arange(len(latents), dtype=np.int64) % 3
    return dataclasses.replace(latents, labels=labels, digest="labelled")


def run(
    out: Path,
    data: ImageData | LatentData,
    teacher: Checkpoint | None = None,
    *,
    model: ModelConfig = LATENT,
    overwrite: bool = False,
    observe: Callable[[Progress], None] = lambda progress: None,
    **train: Any,
) -> Checkpoint:
    config = TrainConfig.model_validate({**TRAIN.model_dump(), **train})
    if teacher is None:
        return fit(model, SCHEDULE, "v", data, config, out, overwrite=overwrite, observe=observe)
    return distill(model, teacher, data, config, DistillConfig(), out, overwrite=overwrite, observe=observe)


def teacher_of(space: str | None, config: ModelConfig = LATENT) -> Checkpoint:
    torch.manual_seed(5)
    provenance = Provenance(made_by="train", parents={} if space is None else {"autoencoder": space})
    return Checkpoint.of(SpectralUNet(config), SCHEDULE, "v", provenance)


# What is drawn


def test_a_batch_is_of_latents_and_of_their_mirror_images(latents: LatentData) -> None:
    samples = LatentSamples(latents)
    indices, mirrored = np.array([3, 3, 9]), np.array([False, True, True])
    taken = samples.take(indices, mirrored, np.zeros((3, 2)))
    assert (samples.shape, len(samples), taken.dtype) == ((4, 4, 4), 32, np.float32)
    for value, (index, way) in zip(taken, ((3, 0), (3, 1), (9, 1)), strict=True):
        np.testing.assert_array_equal(value, latents.latents[index, way].astype(np.float32))
    assert samples.parents == {"autoencoder": latents.latent_space}


@torch.no_grad()
def test_pictures_of_latents_are_what_the_decoder_makes_of_them(latents: LatentData, tiny_data: ImageData) -> None:
    samples = LatentSamples(latents)
    z = samples.take(np.arange(3), np.zeros(3, bool), np.zeros((3, 2)))
    pictures = samples.pictures(z)
    image = latents.decoder.build()(torch.from_numpy(z)).clamp(-1, 1).permute(0, 2, 3, 1).numpy()
    assert (pictures.shape, pictures.dtype) == ((3, 16, 16, 3), np.uint8)
    assert np.abs(pictures - (image + 1) * 127.5).max() <= 0.5 + 1e-4
    assert PixelSamples(tiny_data).pictures(tiny_data.pixels[:3] / 127.5 - 1).shape == pictures.shape


# What a run leaves


@pytest.mark.parametrize("verb", ["fit", "distill"])
def test_the_decoder_lies_beside_the_checkpoint(verb: str, latents: LatentData, tmp_path: Path) -> None:
    teacher = teacher_of(latents.latent_space) if verb == "distill" else None
    run(tmp_path, latents, teacher, sample_every=3)
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT, DECODER, METRICS, "samples"}
    checkpoint, decoder = load_checkpoint(tmp_path / CHECKPOINT), load_decoder(tmp_path / DECODER)
    parents = {"autoencoder": latents.latent_space}
    assert checkpoint.header.provenance.parents == (parents if teacher is None else {"teacher": teacher.header.digest, **parents})
    assert checkpoint.header.provenance.data_digest == latents.digest
    assert decoder.header == latents.decoder.header
    assert latent_space(decoder) == latents.latent_space
    found = open_model(tmp_path / CHECKPOINT)
    assert found.decoder is not None
    assert found.decoder.header == decoder.header
    with Image.open(tmp_path / "samples" / "step_000003.png") as sheet:
        assert sheet.size == (4 * 17 - 1, 4 * 17 - 1)  # sixteen images, not latents


def test_a_run_of_pixels_leaves_none(tiny_data: ImageData, tiny_config: ModelConfig, tmp_path: Path) -> None:
    run(tmp_path, tiny_data, model=tiny_config, steps=1)
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT, METRICS}
    assert load_checkpoint(tmp_path / CHECKPOINT).header.provenance.parents == {}
    assert open_model(tmp_path / CHECKPOINT).decoder is None


@pytest.mark.parametrize("left", ["nothing", "another", "half a file"])
def test_a_decoder_that_a_kill_kept_away_is_there_after_the_same_command(
    left: str, latents: LatentData, others: LatentData, tmp_path: Path
) -> None:
    run(tmp_path, latents)
    weights = (tmp_path / CHECKPOINT).read_bytes()
    if left == "nothing":
        (tmp_path / DECODER).unlink()
    elif left == "another":
        others.decoder.save(tmp_path / DECODER)
    else:
        (tmp_path / DECODER).write_bytes((tmp_path / DECODER).read_bytes()[:100])
    steps: list[int] = []
    run(tmp_path, latents, observe=lambda progress: steps.append(progress.step))
    assert steps == []
    assert (tmp_path / CHECKPOINT).read_bytes() == weights
    assert open_model(tmp_path / CHECKPOINT).decoder is not None


def test_a_run_that_was_cut_goes_on_exactly(latents: LatentData, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    run(tmp_path / "whole", latents, steps=5)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", latents, steps=5, observe=stop)
    run(tmp_path / "cut", latents, steps=5)
    for name in (CHECKPOINT, DECODER):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_latents_are_another_run(latents: LatentData, others: LatentData, tmp_path: Path) -> None:
    first = run(tmp_path, latents)
    with pytest.raises(EdgeSDError, match=r"data_digest was .*, now "):
        run(tmp_path, others)
    assert load_decoder(tmp_path / DECODER).header == latents.decoder.header
    second = run(tmp_path, others, overwrite=True)
    assert second.header.digest != first.header.digest
    assert load_decoder(tmp_path / DECODER).header == others.decoder.header


# What does not belong together


@pytest.mark.parametrize(
    ("teacher", "data", "said"),
    [
        ("pixels", "latents", "it denoises pixels, the data are latents ({ours})"),
        ("latents", "pixels", "it denoises other latents ({theirs}), the data are pixels"),
        ("others", "latents", "it denoises other latents ({theirs}), the data are latents ({ours})"),
    ],
)
def test_a_teacher_of_another_latent_space(
    teacher: str, data: str, said: str, latents: LatentData, others: LatentData, tiny_data: ImageData, tmp_path: Path
) -> None:
    spaces = {"pixels": None, "latents": latents.latent_space, "others": others.latent_space}
    model = LATENT if data == "latents" else changed(LATENT, image_size=16, in_channels=3, out_channels=3)
    given = latents if data == "latents" else tiny_data
    with pytest.raises(UsageError) as refused:
        run(tmp_path / "out", given, teacher_of(spaces[teacher], model), model=model)
    said = said.format(ours=latents.latent_space[:12], theirs=(spaces[teacher] or "")[:12])
    assert refused.value.message == f"the teacher was trained in another latent space: {said}"
    assert "--autoencoder" in refused.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changes", [{"image_size": 8}, {"in_channels": 3, "out_channels": 3}, {"out_channels": 8}])
def test_a_model_of_another_size_than_the_latents(changes: dict[str, int], latents: LatentData, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the latents are \(4, 4, 4\), the model takes") as refused:
        run(tmp_path / "out", latents, model=changed(LATENT, **changes))
    assert "edge-sd list presets" in refused.value.hint
    assert not (tmp_path / "out").exists()


def test_a_decoder_of_other_latents_beside_a_checkpoint(latents: LatentData, others: LatentData, tmp_path: Path) -> None:
    run(tmp_path, latents, steps=1)
    others.decoder.save(tmp_path / DECODER)
    with pytest.raises(EdgeSDError, match=f"trained on latents {latents.latent_space[:12]}.*takes {others.latent_space[:12]}"):
        open_model(tmp_path / CHECKPOINT)
    (tmp_path / DECODER).unlink()
    assert open_model(tmp_path / CHECKPOINT).decoder is None


# Classes


@pytest.mark.parametrize("conditioning", [{}, {"class_conditioning": "context", "context_dim": 6}])
@pytest.mark.parametrize("verb", ["fit", "distill"])
def test_classes_are_learnt_from_labels(verb: str, conditioning: dict[str, Any], labelled: LatentData, tmp_path: Path) -> None:
    model = changed(LATENT, num_classes=3, **conditioning)
    teacher = teacher_of(labelled.latent_space, model) if verb == "distill" else None
    before = {name: value.clone() for name, value in _initial(model).items()}
    checkpoint = run(tmp_path, labelled, teacher, model=model, sample_every=3)
    name = "temporal_net.classes.weight"
    assert np.abs(checkpoint.weights[name] - before[name].numpy()).max(axis=1).min() > 0, "every class has moved"
    assert checkpoint.header.model.num_classes == 3


def _initial(model: ModelConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(TRAIN.seed)
    return dict(SpectralUNet(model).state_dict())


def test_labels_go_with_their_samples(labelled: LatentData, tmp_path: Path) -> None:
    """Turned round, they teach something else; and a class decides on what comes out."""
    model = changed(LATENT, num_classes=3)
    assert labelled.labels is not None
    turned = dataclasses.replace(labelled, labels=labelled.labels[::-1].copy(), digest="turned")
    one, other = run(tmp_path / "one", labelled, model=model), run(tmp_path / "other", turned, model=model)
    assert one.header.digest != other.header.digest
    built = one.build()
    features = [built.temporal(torch.tensor([500.0]), torch.tensor([label])) for label in range(3)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(features, 2))


def test_a_model_without_classes_does_not_mind_labels(latents: LatentData, labelled: LatentData, tmp_path: Path) -> None:
    plain, with_labels = run(tmp_path / "plain", latents), run(tmp_path / "labels", labelled)
    assert plain.header.digest == with_labels.header.digest


@pytest.mark.parametrize("kind", ["latents", "pixels"])
def test_classes_without_labels(
    kind: str, latents: LatentData, tiny_data: ImageData, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    data, model = (latents, LATENT) if kind == "latents" else (tiny_data, tiny_config)
    with pytest.raises(UsageError, match="no classes to train a class-conditional model with") as refused:
        run(tmp_path / "out", data, model=changed(model, num_classes=3))
    assert "--labels" in refused.value.hint
    assert not (tmp_path / "out").exists()


def test_a_label_that_the_model_does_not_know(labelled: LatentData, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the data have a class 2, the model knows 2"):
        run(tmp_path / "out", labelled, model=changed(LATENT, num_classes=2))
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_other_classes(labelled: LatentData, tmp_path: Path) -> None:
    teacher = teacher_of(labelled.latent_space, changed(LATENT, num_classes=4))
    with pytest.raises(EdgeSDError, match="the teacher knows 4 classes, the student 3"):
        run(tmp_path / "out", labelled, teacher, model=changed(LATENT, num_classes=3))
