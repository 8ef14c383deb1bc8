"""Latent diffusion by its verbs: from images to an autoencoder, its latents, a student, and a bundle that draws images."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import diffusers
import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from edge_sd.autoencoder import AutoencoderFile, load_autoencoder
from edge_sd.bundle import Bundle, open_bundle
from edge_sd.checkpoint import Checkpoint, Provenance, load_checkpoint
from edge_sd.decoder import latent_space, load_decoder
from edge_sd.diffusion import SCHEDULES
from edge_sd.models import ModelConfig
from edge_sd.models.autoencoder import Autoencoder, AutoencoderConfig
from edge_sd.models.unet import SpectralUNet
from edge_sd.pretrained import AUTOENCODERS, SHIPPED, autoencoder_path
from verbs import call, refused, succeeded

RUNTIMES = ("torch", "onnxruntime", "executorch")
DATA = ("--count", 8, "--min-radius", 3)
FEW = ("--steps", 3, "--batch-size", 4, "--sample-every", 0)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing of these tests goes to the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_SD_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """autoencoder/, teacher/, student/, student.edgesd for ONNX: images of 16 px, latents of 4×4×4."""
    work = tmp_path_factory.mktemp("work")
    autoencoder = work / "autoencoder" / "autoencoder.safetensors"
    latent = ("--autoencoder", autoencoder, "--size", 4, *DATA, *FEW)
    succeeded("train-autoencoder", "--size", 16, "--width", 4, *DATA, *FEW, "-o", work / "autoencoder")
    succeeded("train", "--preset", "latent16-lite", *latent, "-o", work / "teacher")
    teacher = work / "teacher" / "checkpoint.safetensors"
    succeeded("distill", "--teacher", teacher, "--preset", "latent16", *latent, "-o", work / "student")
    student = work / "student" / "checkpoint.safetensors"
    succeeded("export", student, "--target", "onnx", "--steps", 2, "--goldens", 2, "--seed", 1, "-o", work / "student.edgesd")
    return work


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    """From here on the test fails where an image is read."""
    monkeypatch.setattr("edge_sd.api.images.read_images", lambda config, size, observer: pytest.fail("images were read"))


@pytest.fixture(scope="module")
def smallest(work: Path) -> Path:
    """smallest/, smallest.edgesd for every target: the same latents, and a denoiser that is soon lowered."""
    autoencoder = load_autoencoder(work / "autoencoder" / "autoencoder.safetensors")
    model = ModelConfig(
        image_size=4, in_channels=4, out_channels=4, width=8, multipliers=(1,), blocks=1, attention=(), norm_groups=4,
        head_channels=8,
    )  # fmt: skip
    torch.manual_seed(2)
    provenance = Provenance(made_by="train", parents={"autoencoder": latent_space(autoencoder.decoder())})
    checkpoint = work / "smallest" / "checkpoint.safetensors"
    Checkpoint.of(SpectralUNet(model), SCHEDULES["cosine"], "v", provenance).save(checkpoint)
    autoencoder.decoder().save(checkpoint.with_name("decoder.safetensors"))
    succeeded("export", checkpoint, "--target", "all", "--steps", 2, "--goldens", 1, "-o", work / "smallest.edgesd")
    return checkpoint


@pytest.fixture
def bundle(smallest: Path, work: Path) -> Bundle:
    return open_bundle(work / "smallest.edgesd")


@pytest.fixture
def checkpoint(work: Path) -> Path:
    return work / "student" / "checkpoint.safetensors"


@pytest.fixture
def autoencoder(work: Path) -> Path:
    return work / "autoencoder" / "autoencoder.safetensors"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """An autoencoder of the same shape and other weights."""
    torch.manual_seed(7)
    path = tmp_path / "other" / "autoencoder.safetensors"
    file = AutoencoderFile.of(Autoencoder(AutoencoderConfig(width=4)), Provenance(made_by="train-autoencoder"))
    file.save(path)
    file.decoder().save(path.with_name("decoder.safetensors"))
    return path


# What the verbs leave


def test_each_verb_leaves_the_same_decoder(work: Path, autoencoder: Path) -> None:
    space = latent_space(load_autoencoder(autoencoder).decoder())
    for folder in (work / "teacher", work / "student", work / "student.edgesd"):
        assert latent_space(load_decoder(folder / "decoder.safetensors")) == space
    for folder in ("teacher", "student"):
        parents = load_checkpoint(work / folder / "checkpoint.safetensors").header.provenance.parents
        assert parents["autoencoder"] == space


def test_latents_are_computed_once_for_teacher_and_student(work: Path, cache: Path) -> None:
    assert len(list(cache.glob("latents-*.safetensors"))) == 1


def test_a_cache_folder_can_be_named(autoencoder: Path, tmp_path: Path) -> None:
    arguments = ("train", "--preset", "latent16-lite", "--autoencoder", autoencoder, "--size", 4, *DATA, *FEW)
    arguments = (*arguments, "--cache", tmp_path / "named")
    first = succeeded(*arguments, "-o", tmp_path / "one")
    (path,) = (tmp_path / "named").glob("latents-*.safetensors")
    made = path.stat().st_mtime_ns
    second = succeeded(*arguments, "-o", tmp_path / "two")
    assert ("encoding images: 8/8" in first.err, "encoding images" in second.err) == (True, False)
    assert path.stat().st_mtime_ns == made
    one, two = (load_checkpoint(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two"))
    assert one.header.digest == two.header.digest


def test_training_says_what_the_latents_were(work: Path, tmp_path: Path) -> None:
    """And the same command again finds the run finished."""
    arguments = ("train-autoencoder", "--size", 16, "--width", 4, *DATA, *FEW)
    done = succeeded(*arguments, "-o", work / "autoencoder")
    stds = load_autoencoder(work / "autoencoder" / "autoencoder.safetensors").weights["decoder.std"]
    assert f"deviation of its latent, measured: {', '.join(f'{value:.2f}' for value in stds)}" in done.err


@pytest.mark.parametrize("factor", [4, 8])
def test_an_image_is_as_much_larger_as_the_factor_says(factor: int, tmp_path: Path) -> None:
    size = 4 * factor
    autoencoder = tmp_path / "autoencoder" / "autoencoder.safetensors"
    succeeded(
        "train-autoencoder", "--size", size, "--factor", factor, "--width", 4, "--latent-channels", 3, *DATA, *FEW[:-1], 3,
        "-o", autoencoder.parent,
    )  # fmt: skip
    assert pixels(autoencoder.parent / "samples" / "step_000003.png").shape == (4 * size + 3, 4 * size + 3, 3)
    succeeded(
        "train", "--preset", "tiny16", "--size", 4, "--autoencoder", autoencoder, *DATA, *FEW, "-o", tmp_path / "denoiser"
    )  # fmt: skip
    succeeded("sample", tmp_path / "denoiser" / "checkpoint.safetensors", "-n", 4, "--steps", 2, "-o", tmp_path / "x.png")
    assert pixels(tmp_path / "x.png").shape == (2 * size + 1, 2 * size + 1, 3)


def test_a_diffusers_folder_is_an_autoencoder_too(tmp_path: Path) -> None:
    """Its scale is measured, said, and kept in the decoder."""
    torch.manual_seed(3)
    diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=3,
    ).save_pretrained(tmp_path / "theirs")  # fmt: skip
    arguments = ("--preset", "tiny16", "--size", 4, "--autoencoder", tmp_path / "theirs", *DATA, *FEW)
    done = succeeded("train", *arguments, "-o", tmp_path / "denoiser")
    header = load_decoder(tmp_path / "denoiser" / "decoder.safetensors").header
    assert f"latents: scale {header.latent_scale:.4f} and shift {header.latent_shift:.4f}, measured" in done.err
    assert header.latent_scale != 1
    succeeded("sample", tmp_path / "denoiser" / "checkpoint.safetensors", "-n", 1, "--steps", 2, "-o", tmp_path / "x.png")
    assert pixels(tmp_path / "x.png").shape == (8, 8, 3)
    said = succeeded("inspect", tmp_path / "denoiser" / "decoder.safetensors").out
    assert "diffusers' AutoencoderTiny" in said
    assert f"{header.latent_scale:.4g}, shift {header.latent_shift:.4g}" in said


# The bundle


def test_the_decoder_is_a_program_of_every_target(bundle: Bundle) -> None:
    for target in ("torch", "onnx", "executorch", "coreml"):
        assert (bundle.path / bundle.program(target, "decoder").file).exists()
    contract = bundle.manifest.contract("decoder")
    assert [(spec.name, spec.shape) for spec in (*contract.inputs, *contract.outputs)] == [
        ("latent", (1, 4, 4, 4)), ("image", (1, 3, 16, 16)),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "runtimes"), [("student", RUNTIMES[:2]), ("smallest", RUNTIMES)])
@pytest.mark.usefixtures("smallest")
def test_every_runtime_is_at_par_the_decoder_too(name: str, runtimes: tuple[str, ...], work: Path) -> None:
    names = [part for runtime in runtimes for part in ("--runtime", runtime)]
    results = json.loads(succeeded("parity", work / f"{name}.edgesd", *names, "--format", "json").out)
    assert [result["runtime"] for result in results] == list(runtimes)
    for result in results:
        assert {step["forced"]["outcome"] for step in result["steps"]} == {"passed"}
        assert result["decoder"]["outcome"] == "passed"
        assert result["decoder"]["value_db"] > 80
        assert min(step["forced"]["value_db"] for step in result["steps"]) > 80


@pytest.mark.parametrize(("name", "runtime"), [("student", "onnxruntime"), *(("smallest", runtime) for runtime in RUNTIMES)])
@pytest.mark.usefixtures("smallest")
def test_a_bundle_draws_the_checkpoints_images(name: str, runtime: str, work: Path, tmp_path: Path) -> None:
    arguments, checkpoint = ("-n", 3, "--seed", 1), work / name / "checkpoint.safetensors"
    succeeded("sample", checkpoint, *arguments, "--steps", 2, "-o", tmp_path / "checkpoint.png")
    succeeded("sample", work / f"{name}.edgesd", *arguments, "--runtime", runtime, "-o", tmp_path / "bundle.png")
    theirs, ours = pixels(tmp_path / "checkpoint.png"), pixels(tmp_path / "bundle.png")
    assert theirs.shape == ours.shape == (33, 33, 3)
    assert np.abs(theirs - ours).max() <= 1


def test_haars_inverse_is_inside_the_convolutions(bundle: Bundle) -> None:
    """No transposed convolution is left, and XNNPACK takes all of it."""
    decoder = bundle.program("executorch", "decoder").placement
    assert decoder is not None
    assert (decoder.delegate_calls, decoder.outside) == (1, {})
    operators = [node.op_type for node in onnx.load(bundle.path / bundle.program("onnx", "decoder").file).graph.node]
    assert operators.count("DepthToSpace") == 2
    assert set(operators) == {"Conv", "DepthToSpace", "Relu", "Add", "Mul"}


# inspect


def test_inspect_tells_what_a_file_of_weights_is(work: Path, autoencoder: Path, checkpoint: Path) -> None:
    space = latent_space(load_autoencoder(autoencoder).decoder())
    decoder = checkpoint.with_name("decoder.safetensors")
    for path, said in (
        (
            autoencoder,
            ("autoencoder", "4 channels", "4 times coarser, width 4", "train-autoencoder, 3 steps, seed 0", "dead leaves"),
        ),
        (decoder, ("decoder", "4 channels", "edge-sd's own", "4 times coarser, width 4")),
        (checkpoint, ("checkpoint", "4×4×4, width 35", "v-prediction", "gating on", "distill, 3 steps", "from teacher")),
    ):
        done = succeeded("inspect", path)
        assert done.err == ""
        found = " ".join(re.sub("[│┃]", " ", done.out).split())
        assert not [text for text in (*said, space) if text not in found], done.out


def test_inspect_takes_a_shipped_models_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHIPPED, "emoji64", checkpoint)
    header = load_checkpoint(checkpoint).header
    assert json.loads(succeeded("inspect", "emoji64", "--format", "json").out)["digest"] == header.digest


def test_inspect_of_weights_as_json_is_their_header(autoencoder: Path, checkpoint: Path) -> None:
    for path, digest in (
        (autoencoder, load_autoencoder(autoencoder).header.digest),
        (checkpoint, load_checkpoint(checkpoint).header.digest),
        (checkpoint.with_name("decoder.safetensors"), load_decoder(checkpoint.with_name("decoder.safetensors")).header.digest),
    ):
        assert json.loads(succeeded("inspect", path, "--format", "json").out)["digest"] == digest


def test_inspect_of_a_file_that_is_damaged_or_of_another_kind(autoencoder: Path, work: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    whole = autoencoder.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(call("inspect", path), 1, "x.safetensors: the weights have changed since they were written")
    path.write_bytes(whole[:-9])
    refused(call("inspect", path), 1, "x.safetensors is not a whole safetensors file")
    refused(call("inspect", work / "student.edgesd" / "plan.safetensors"), 1, "plan.safetensors holds something else, of which")


# Names of what comes with the package


def test_a_model_is_trained_in_a_shipped_autoencoders_latents(
    autoencoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(AUTOENCODERS, "emoji64", autoencoder)
    succeeded("train", "--preset", "latent16", "--autoencoder", "emoji64", "--size", 4, *DATA, *FEW, "-o", tmp_path / "out")
    space = latent_space(load_autoencoder(autoencoder).decoder())
    assert load_checkpoint(tmp_path / "out" / "checkpoint.safetensors").header.provenance.parents["autoencoder"] == space


def test_what_is_called_like_a_shipped_autoencoder_here_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert autoencoder_path("emoji64") == AUTOENCODERS["emoji64"]
    assert autoencoder_path("other.safetensors") == Path("other.safetensors")
    Path("emoji64").mkdir()
    assert autoencoder_path("emoji64") == Path("emoji64")


# What is refused


@pytest.mark.parametrize("verb", ["sample", "export"])
def test_a_checkpoint_without_its_decoder(verb: str, checkpoint: Path, tmp_path: Path) -> None:
    alone = tmp_path / "checkpoint.safetensors"
    alone.write_bytes(checkpoint.read_bytes())
    out = ("-o", tmp_path / "x.png") if verb == "sample" else ("--target", "onnx", "--dry-run")
    refused(call(verb, alone, *out), 1, "denoises latents, and decoder.safetensors is not beside it", "put it there")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_a_decoder_can_be_given_where_none_is_beside(checkpoint: Path, tmp_path: Path) -> None:
    alone = tmp_path / "checkpoint.safetensors"
    alone.write_bytes(checkpoint.read_bytes())
    given = ("--decoder", checkpoint.with_name("decoder.safetensors"))
    done = succeeded("export", alone, "--target", "onnx", "--steps", 2, "--dry-run", *given)
    assert re.search(r"onnx +│ decoder", done.out)


def test_a_decoder_of_another_latent_space(checkpoint: Path, other: Path, tmp_path: Path) -> None:
    given = other.with_name("decoder.safetensors")
    theirs, ours = load_checkpoint(checkpoint).header.provenance.parents["autoencoder"], latent_space(load_decoder(given))
    for more in ((), ("--dry-run",)):
        done = call("export", checkpoint, "--target", "onnx", "--decoder", given, *more, "-o", tmp_path / "x.edgesd")
        refused(done, 1, f"trained on latents {theirs[:12]}", f"the decoder takes {ours[:12]}", "beside the checkpoint")
    done = call("export", checkpoint, "--target", "onnx", "--decoder", other, "-o", tmp_path / "x.edgesd")
    refused(done, 1, "autoencoder.safetensors is not a valid DecoderHeader")
    assert not (tmp_path / "x.edgesd").exists()


@pytest.mark.parametrize("verb", ["sample", "export"])
def test_a_decoder_of_another_latent_space_beside_the_checkpoint(
    verb: str, checkpoint: Path, other: Path, tmp_path: Path
) -> None:
    alone = other.with_name("checkpoint.safetensors")
    alone.write_bytes(checkpoint.read_bytes())
    out = ("-o", tmp_path / "x.png") if verb == "sample" else ("--target", "onnx", "--dry-run")
    refused(call(verb, alone, *out), 1, "the denoiser was trained on latents")


def test_a_teacher_of_another_latent_space(work: Path, other: Path, unread: None, tmp_path: Path) -> None:
    teacher = work / "teacher" / "checkpoint.safetensors"
    few = ("--size", 4, *DATA, *FEW, "-o", tmp_path / "out")
    done = call("distill", "--teacher", teacher, "--preset", "latent16", "--autoencoder", other, *few)
    refused(
        done, 2, "the teacher was trained in another latent space", "not these latents", "give --autoencoder as for the teacher"
    )
    done = call("distill", "--teacher", teacher, "--preset", "latent16", *few)
    refused(done, 2, "the teacher was trained in another latent space: it denoises latents", "not pixels")
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_other_samples(
    work: Path, autoencoder: Path, tiny_checkpoint: Checkpoint, unread: None, tmp_path: Path
) -> None:
    """Of pixels where latents are made, or of latents of another size."""
    tiny_checkpoint.save(tmp_path / "pixels.safetensors")
    latent = ("--preset", "latent16", "--autoencoder", autoencoder, *DATA, *FEW, "-o", tmp_path / "out")
    done = call("distill", "--teacher", tmp_path / "pixels.safetensors", *latent, "--size", 4)
    refused(done, 2, "the teacher was trained in another latent space: it denoises pixels, not these latents")
    done = call("distill", "--teacher", work / "teacher" / "checkpoint.safetensors", *latent, "--size", 8)
    refused(done, 2, "the teacher denoises (4, 4, 4), the student (4, 8, 8)")


def test_a_teacher_of_a_foreign_autoencoder_with_other_weights(work: Path, unread: None, tmp_path: Path) -> None:
    """Its scale is measured later, its weights can be compared at once."""
    torch.manual_seed(1)
    diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(tmp_path / "theirs")  # fmt: skip
    done = call(
        "distill", "--teacher", work / "teacher" / "checkpoint.safetensors", "--preset", "latent16", "--size", 4,
        "--autoencoder", tmp_path / "theirs", *DATA, *FEW, "-o", tmp_path / "out",
    )  # fmt: skip
    refused(done, 2, "the teacher was trained in another latent space")


def test_a_margin_is_refused_before_images_are_read(autoencoder: Path, unread: None, tmp_path: Path) -> None:
    done = call(
        "train", "--preset", "latent16", "--size", 4, "--autoencoder", autoencoder, "--crop", 4, *DATA, *FEW,
        "-o", tmp_path / "out",
    )  # fmt: skip
    refused(done, 2, "windows cannot be cut at random", "leave --crop out")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("train", "--preset", "tiny16", "--size", 4, "--autoencoder", "OURS"), 2, "latents have 4 channels, the model takes 3"),
        (("train", "--preset", "latent16", "--size", 4, "--autoencoder", "OURS", "--crop", 2), 2, "leave --crop out"),
        (("train", "--preset", "latent16", "--autoencoder", "nowhere.safetensors"), 1, "nowhere.safetensors does not exist"),
        (("train", "--preset", "latent16", "--autoencoder", "STUDENT"), 1, "is not a valid AutoencoderHeader"),
        (("train", "--preset", "latent16", "--autoencoder", "FOLDER"), 1, "config.json"),
        (("train-autoencoder", "--size", 18), 2, "images of 18 px cannot become latents 4 times coarser"),
        (("train-autoencoder", "--size", 20, "--factor", 8), 2, "images of 20 px cannot become latents 8 times coarser"),
        (("train-autoencoder", "--size", 16, "--factor", 6), 2, "the autoencoder: factor"),
        (("train-autoencoder", "--size", 16, "--noise", 2), 2, "the autoencoder: noise"),
    ],
)
def test_what_cannot_be_meant(
    arguments: tuple[object, ...], code: int, said: str, autoencoder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    places = {"OURS": autoencoder, "STUDENT": checkpoint, "FOLDER": tmp_path / "folder"}
    done = call(*(places.get(str(argument), argument) for argument in arguments), *DATA, *FEW, "-o", tmp_path / "out")
    refused(done, code, said)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_of_an_autoencoder_is_not_trained_in(work: Path) -> None:
    done = call("train", "--preset", "tiny16", *DATA, *FEW, "-o", work / "autoencoder")
    refused(done, 2, "is no training run: it holds autoencoder.safetensors")
