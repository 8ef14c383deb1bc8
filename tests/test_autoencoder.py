"""Autoencoders as files and as folders: what is read is what was written or what diffusers computes; all else is named."""

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from edge_sd.autoencoder import AutoencoderFile, Codec, load_autoencoder, open_autoencoder
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.decoder import OWN, image_shape, latent_space, load_decoder
from edge_sd.errors import EdgeSDError, ExitCode
from edge_sd.files import tensors_digest, write_tensors
from edge_sd.foreign import weights as foreign_weights
from edge_sd.models.autoencoder import Autoencoder, AutoencoderConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"
TWO: dict[str, Any] = {
    "block_out_channels": (8, 16), "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
TINY: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1),
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("AutoencoderTiny", {**TINY, "scaling_factor": 1.5, "shift_factor": 0.2}),
    "KL": ("AutoencoderKL", {**TWO, "shift_factor": 0.3, "scaling_factor": 2.0}),
    "KL, bare": ("AutoencoderKL", {**TWO, "use_quant_conv": False, "use_post_quant_conv": False}),
    "VQ": ("VQModel", {**TWO, "num_vq_embeddings": 50, "scaling_factor": 0.5}),
}


@pytest.fixture
def model() -> Autoencoder:
    """Factor 4, three latent channels, standardised by numbers that hide nothing."""
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig(width=4, latent_channels=3, noise=0.2)).eval()
    model.standardise(torch.tensor([0.1, -0.2, 0.3]), torch.tensor([0.5, 0.7, 2.0]))
    return model


@pytest.fixture
def file(model: Autoencoder) -> AutoencoderFile:
    return AutoencoderFile.of(model, Provenance(made_by="train-autoencoder", steps=7, seed=3))


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def folder_of(kind: str, folder: Path, **changes: Any) -> tuple[Any, Path]:
    """diffusers' autoencoder with weights that hide nothing, and where it is saved."""
    name, settings = KINDS[kind]
    torch.manual_seed(0)
    theirs = getattr(diffusers, name)(**{**settings, **changes}).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, parameter in theirs.named_parameters():
            if parameter.ndim == 1 or path.startswith("quantize"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 2)
    theirs.save_pretrained(folder)
    return theirs, folder


# Our file


@torch.no_grad()
def test_what_is_saved_is_what_is_read(file: AutoencoderFile, model: Autoencoder, image: torch.Tensor, tmp_path: Path) -> None:
    file.save(tmp_path / "autoencoder.safetensors")
    again = load_autoencoder(tmp_path / "autoencoder.safetensors")
    assert again.header == file.header
    assert (again.header.provenance.steps, again.header.model.noise) == (7, 0.2)
    assert again.weights.keys() == file.weights.keys()
    built = again.build()
    assert not built.training
    assert torch.equal(built(image), model(image))
    assert torch.equal(built.encoder(image), model.encoder(image))


@torch.no_grad()
def test_a_file_is_a_copy_of_the_weights(file: AutoencoderFile, model: Autoencoder) -> None:
    before = tensors_digest(file.weights)
    for parameter in model.parameters():
        parameter.zero_()
    assert tensors_digest(file.weights) == before == file.header.digest


@torch.no_grad()
def test_the_decoders_file_is_the_decoder_half(file: AutoencoderFile, model: Autoencoder, tmp_path: Path) -> None:
    file.decoder().save(tmp_path / "decoder.safetensors")
    decoder, latent = load_decoder(tmp_path / "decoder.safetensors"), torch.randn(2, 3, 4, 4)
    assert (decoder.header.architecture, decoder.header.latent_scale, decoder.header.latent_shift) == (OWN, 1.0, 0.0)
    assert decoder.latent_channels == 3
    assert torch.equal(decoder.build()(latent), model.decoder(latent))
    assert decoder.weights.keys() == model.decoder.state_dict().keys()
    assert image_shape(decoder, (3, 4, 6)) == (3, 16, 24)
    assert latent_space(decoder) == latent_space(file.decoder())
    with pytest.raises(EdgeSDError, match="takes 3 latent channels, these are 4"):
        image_shape(decoder, (4, 4, 4))


@torch.no_grad()
def test_opened_it_is_both_ways(file: AutoencoderFile, model: Autoencoder, image: torch.Tensor, tmp_path: Path) -> None:
    file.save(tmp_path / "autoencoder.safetensors")
    codec = open_autoencoder(tmp_path / "autoencoder.safetensors")
    assert codec.own
    assert not any(parameter.requires_grad for parameter in codec.encoder.parameters())
    assert torch.equal(codec.encoder(image), model.encoder(image))
    assert torch.equal(codec.decoder.build()(codec.encoder(image)), model(image))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ("cut short", "not a whole safetensors file"),
        ("one bit", "have changed since they were written"),
        ("missing", "does not exist"),
        ("a folder", "cannot read"),
        ("text", "not a whole safetensors file"),
        ("no header", "not one of edge-sd"),
        ("not finite", "encoder.std holds a NaN"),
        ("newer", "has schema version 2, this edge-sd reads version 1"),
        ("a setting unheard of", "is not a valid AutoencoderHeader: model.depth"),
    ],
)
def test_a_file_that_is_damaged_is_named(damage: str, complaint: str, file: AutoencoderFile, tmp_path: Path) -> None:
    path = tmp_path / "autoencoder.safetensors"
    file.save(path)
    whole = path.read_bytes()
    if damage == "cut short":
        path.write_bytes(whole[:-9])
    elif damage == "one bit":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "missing":
        path.unlink()
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    elif damage == "text":
        path.write_text("weights")
    elif damage == "no header":
        save_file(file.weights, path)
    elif damage == "not finite":
        file.weights["encoder.std"][1] = np.nan
        file.save(path)
    else:
        values = file.header.model_dump(mode="json")
        values |= {"schema_version": 2} if damage == "newer" else {"model": {**values["model"], "depth": 9}}
        save_file(file.weights, path, metadata={"edge_sd": json.dumps(values)})
    for read in (open_autoencoder,) if damage == "a folder" else (load_autoencoder, open_autoencoder):
        with pytest.raises(EdgeSDError, match=re.escape(complaint)) as refused:
            read(path)
        assert refused.value.code == ExitCode.FAILURE
        assert str(path) in refused.value.message


def test_other_files_of_ours_are_no_autoencoder(file: AutoencoderFile, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    for other in (file.decoder(), tiny_checkpoint):
        other.save(path)
        with pytest.raises(EdgeSDError, match=r"other\.safetensors is not a valid AutoencoderHeader: kind"):
            open_autoencoder(path)
    file.save(path)
    with pytest.raises(EdgeSDError, match=r"other\.safetensors is not a valid DecoderHeader: kind"):
        load_decoder(path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("missing", "weights do not fit the autoencoder: decoder.mean is None, expected (3,)"),
        ("unknown", "weights do not fit the autoencoder: decoder.more is (2,), expected None"),
        ("other shape", "weights do not fit the autoencoder: decoder.mean is (4,), expected (3,)"),
    ],
)
def test_weights_that_are_not_the_configurations(change: str, complaint: str, file: AutoencoderFile, tmp_path: Path) -> None:
    weights = dict(file.weights)
    if change == "missing":
        del weights["decoder.mean"]
    else:
        weights |= {"decoder.more": np.ones(2, np.float32)} if change == "unknown" else {"decoder.mean": np.ones(4, np.float32)}
    path = tmp_path / "autoencoder.safetensors"
    write_tensors(path, weights, file.header.model_copy(update={"digest": tensors_digest(weights)}))
    with pytest.raises(EdgeSDError, match=re.escape(complaint)):
        open_autoencoder(path)


# diffusers' folders


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_encodes_as_diffusers_does(kind: str, image: torch.Tensor, tmp_path: Path) -> None:
    theirs, folder = folder_of(kind, tmp_path)
    encoded = theirs.encode(image)
    z = encoded.latent_dist.mode() if "KL" in kind else encoded.latents
    scale, shift = theirs.config["scaling_factor"], theirs.config.get("shift_factor") or 0.0
    codec = open_autoencoder(folder)
    assert not codec.own
    assert z.std() > 0.05
    torch.testing.assert_close(codec.encoder(image), (z - shift) * scale, rtol=0, atol=1e-5)
    assert not codec.encoder.training
    assert not any(parameter.requires_grad for parameter in codec.encoder.parameters())


def test_a_folders_weights_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = folder_of("KL", tmp_path)
    read, times = foreign_weights.read_weights, list[Path]()

    def counted(path: Path) -> dict[str, np.ndarray]:
        times.append(path)
        return read(path)

    monkeypatch.setattr(foreign_weights, "read_weights", counted)
    open_autoencoder(folder)
    assert times == [folder]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_there_and_back_is_diffusers_own_way_whatever_the_scale(kind: str, image: torch.Tensor, tmp_path: Path) -> None:
    theirs, folder = folder_of(kind, tmp_path)
    encoded = theirs.encode(image)
    expected = theirs.decode(encoded.latent_dist.mode() if "KL" in kind else encoded.latents).sample
    codec = open_autoencoder(folder)
    other = codec.rescaled(3.0, -0.4)
    assert (other.decoder.header.latent_scale, other.decoder.header.latent_shift) == (3.0, -0.4)
    for way in (codec, other):
        torch.testing.assert_close(way.decoder.build()(way.encoder(image)), expected, rtol=0, atol=1e-4)
    assert (codec.encoder(image) - other.encoder(image)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("tensor missing", "weights do not fit"),
        ("other class", "UNet2DModel is an autoencoder that has no counterpart here"),
        ("no weights", "holds no diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_folder_that_cannot_be_read_is_named(change: str, complaint: str, tmp_path: Path) -> None:
    folder_of("KL", tmp_path)
    if change == "tensor missing":
        weights = load_file(tmp_path / WEIGHTS)
        del weights["encoder.conv_in.weight"]  # nothing that a decoder would miss
        save_file(weights, tmp_path / WEIGHTS)
    elif change == "other class":
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DModel"}))
    else:
        (tmp_path / WEIGHTS).unlink()
    with pytest.raises(EdgeSDError, match=re.escape(complaint)):
        open_autoencoder(tmp_path)


# Names


def names(codec: Codec) -> tuple[str, str]:
    assert re.fullmatch("[0-9a-f]{16}", codec.latent_space)
    assert re.fullmatch("[0-9a-f]{16}", codec.digest)
    return codec.latent_space, codec.digest


def test_a_latent_space_is_named_by_decoder_scale_and_shift(tmp_path: Path) -> None:
    _, folder = folder_of("KL", tmp_path / "one")
    codec = open_autoencoder(folder)
    same, spaces = names(open_autoencoder(folder)), [names(codec)]
    assert same == spaces[0]
    _, scaled = folder_of("KL", tmp_path / "scaled", scaling_factor=2.5)
    spaces += [names(open_autoencoder(scaled)), names(codec.rescaled(2.0, 0.1)), names(codec.rescaled(4.0, 0.3))]
    weights = load_file(folder / WEIGHTS)
    weights["decoder.conv_in.bias"] += 1
    save_file(weights, folder / WEIGHTS)
    spaces.append(names(open_autoencoder(folder)))
    assert len({space for space, _ in spaces}) == len({digest for _, digest in spaces}) == len(spaces)
    assert names(codec.rescaled(2.0, 0.3)) == same  # as its configuration has it


def test_another_encoder_is_another_autoencoder_of_the_same_latent_space(tmp_path: Path) -> None:
    _, folder = folder_of("tiny", tmp_path)
    one = open_autoencoder(folder)
    weights = load_file(folder / WEIGHTS)
    first = next(name for name in sorted(weights) if name.startswith("encoder."))
    weights[first] += 0.1
    save_file(weights, folder / WEIGHTS)
    other = open_autoencoder(folder)
    assert one.latent_space == other.latent_space
    assert one.digest != other.digest


def test_what_was_measured_is_part_of_the_name(model: Autoencoder) -> None:
    """Latents of another mean or deviation are others, though every convolution is the same."""
    before = latent_space(AutoencoderFile.of(model, Provenance(made_by="x")).decoder())
    model.standardise(torch.tensor([0.1, -0.2, 0.3]), torch.tensor([0.5, 0.7, 2.1]))
    assert latent_space(AutoencoderFile.of(model, Provenance(made_by="x")).decoder()) != before
