"""`edge-sd train` from other weights, and for several widths."""

from pathlib import Path

import numpy as np
import pytest

from edge_sd.checkpoint import load_checkpoint
from verbs import call, refused, succeeded

DATA = ("--count", 8, "--sample-every", 0, "--batch-size", 4, "--steps", 2)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    succeeded("train", "--preset", "tiny16", *DATA, "-o", folder)
    return folder / "checkpoint.safetensors"


@pytest.fixture(scope="module")
def plan(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.safetensors"
    succeeded("plan", "make", "--for", first, "--steps", 3, "--widths", "16,16,24", "-o", path)
    return path


def test_it_begins_with_the_weights_given(first: Path, tmp_path: Path) -> None:
    succeeded("train", "--start", first, *DATA, "--lr", 1e-9, "-o", tmp_path)
    begun, found = load_checkpoint(first), load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert found.header.model == begun.header.model
    assert found.header.provenance.parents == {"start": begun.header.digest}
    for name, value in begun.weights.items():
        np.testing.assert_allclose(found.weights[name], value, atol=1e-6)


def test_widths_learn_where_a_plan_calls_them(first: Path, plan: Path, tmp_path: Path) -> None:
    arguments = ("--start", first, "--slimmable", "--slim-widths", "16", "--plan", plan, *DATA, "-o", tmp_path)
    succeeded("train", *arguments)
    file = tmp_path / "checkpoint.safetensors"
    assert load_checkpoint(file).header.model.slim_widths == (16,)
    before = file.stat()
    succeeded("train", *arguments)
    assert file.stat() == before
    without = tuple(word for word in arguments if word not in ("--plan", plan))
    refused(call("train", *without), 1, "other settings")
    succeeded("train", "--start", file, "--slimmable", *DATA, "-o", tmp_path / "on")
    assert load_checkpoint(tmp_path / "on" / "checkpoint.safetensors").header.model.slim_widths == (16,)
    succeeded("train", "--start", file, *DATA, "-o", tmp_path / "one")
    assert load_checkpoint(tmp_path / "one" / "checkpoint.safetensors").header.model.slim_widths == ()


def test_mirror_images_are_learnt_unless_refused(first: Path, tmp_path: Path) -> None:
    for verb in (("train",), ("distill", "--teacher", first)):
        given = (*verb, "--preset", "tiny16", *DATA, "-o", tmp_path / verb[0])
        succeeded(*given, "--no-flip", "--ema-decay", 0.5)
        kept = load_checkpoint(tmp_path / verb[0] / "checkpoint.safetensors").header.provenance.settings["train"]
        assert (kept["flip"], kept["ema_decay"]) == (False, 0.5)
        refused(call(*given, "--ema-decay", 0.5), 1, "train.flip was False, now True")


def test_it_widens_the_weights_given(first: Path, tmp_path: Path) -> None:
    narrow = load_checkpoint(first).header.model.width
    succeeded("train", "--start", first, "--width", narrow + 8, "--slimmable", *DATA, "-o", tmp_path / "slim")
    slim = load_checkpoint(tmp_path / "slim" / "checkpoint.safetensors").header
    assert (slim.model.width, slim.model.slim_widths) == (narrow + 8, (narrow,))
    assert slim.provenance.parents["start"] == load_checkpoint(first).header.digest
    succeeded("train", "--start", first, "--width", narrow + 8, *DATA, "-o", tmp_path / "wide")
    wide = load_checkpoint(tmp_path / "wide" / "checkpoint.safetensors").header.model
    assert (wide.width, wide.slim_widths) == (narrow + 8, ())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--start", "FIRST", "--preset", "tiny16"), ("says what the model is", "leave --preset and --size out")),
        (("--start", "FIRST", "--size", 16), ("says what the model is",)),
        (("--start", "FIRST", "--labels"), ("labels",)),
        (("--start", "emoji64-teacher"), ("latents", "--autoencoder")),
        (("--width", 32), ("--width is of --start",)),
        (("--start", "FIRST", "--width", 24), ("a width of 24 is not more than the 24",)),
        (("--start", "FIRST", "--width", 28), ("28 channels cannot be split into 8 norm groups",)),
        (("--plan", "PLAN"), ("--plan is of --slimmable",)),
        (("--slim-widths", "16"), ("--slim-widths is of --slimmable",)),
        (("--slimmable", "--slim-widths", "8", "--plan", "PLAN"), ("calls widths [16, 24]", "--slim-widths")),
        (("--slimmable", "--slim-widths", "7"), ("7",)),
    ],
)
def test_what_is_refused(arguments: tuple[object, ...], said: tuple[str, ...], first: Path, plan: Path, tmp_path: Path) -> None:
    given = [{"FIRST": first, "PLAN": plan}.get(str(word), word) for word in arguments]
    refused(call("train", *given, *DATA, "-o", tmp_path / "out"), 2, *said)
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()
