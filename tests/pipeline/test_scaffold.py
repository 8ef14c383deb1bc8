"""The proposed configuration: what it looks at, and that a run takes it as it is."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.export import targets
from edge_sd.models.unet import SpectralUNet
from edge_sd.pipeline.config import RunConfig, load_config
from edge_sd.pipeline.scaffold import DEVICES, Survey, scaffold, survey
from edge_sd.runtimes import runtimes
from verbs import call, refused, succeeded


def images(folder: Path, *sizes: tuple[int, int]) -> Path:
    folder.mkdir(parents=True)
    for number, (width, height) in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def configured(found: Survey, device: str, folder: Path) -> RunConfig:
    path = folder / "edge-sd.yaml"
    path.write_text(scaffold(found, device, "mine"))
    config = load_config(path)
    assert isinstance(config, RunConfig)
    return config


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("side", "pixels"), [(16, 16), (40, 32), (64, 64), (100, 64), (4000, 128)])
def test_models_fit_the_images_and_targets_the_device(device: str, side: int, pixels: int, tmp_path: Path) -> None:
    config = configured(Survey("photos", 500, ((side, 2 * side),) * 3, ()), device, tmp_path)
    assert config.data.resize
    factor = config.autoencoder.config.factor if config.autoencoder else 1
    for section in (config.teacher.section, config.student):
        assert section.config.image_size * factor == pixels
    assert not config.teacher.section.config.gating
    assert config.student.config.gating
    teacher, student = (
        sum(weight.numel() for weight in SpectralUNet(section.config).parameters())
        for section in (config.teacher.section, config.student)
    )
    assert teacher > 1.5 * student
    assert set(config.export.targets) <= set(targets())
    known = runtimes()
    for name in (*config.parity.runtimes, *config.bench.runtimes):
        assert known[name].target in {*config.export.targets, "torch"}


@given(st.text(min_size=1).filter(lambda text: "\0" not in text and "\n" not in text and not text.startswith("hub:")))
def test_a_folder_may_be_called_anything(tmp_path_factory: pytest.TempPathFactory, source: str) -> None:
    found = Survey(source, 3, ((64, 64),), ("cat: dog", "#x"))
    config = configured(found, "host", tmp_path_factory.mktemp("any"))
    assert config.data.source == str(Path(source))
    assert not config.data.resize


def test_what_is_seen_of_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    images(root / "cats", (40, 60), (50, 50))
    images(root / "dogs", (70, 90))
    (root / "dogs" / "broken.png").write_bytes(b"no picture")
    found = survey(str(root))
    assert (found.count, found.short_side, found.classes, found.uniform) == (4, 50, ("cats", "dogs"), False)
    assert survey(str(images(tmp_path / "even", (64, 64), (64, 64)))).uniform


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images(tmp_path / "my photos", (16, 16), (16, 16))
    said = succeeded("init", "my photos", "--device", "android").err
    assert "next: edge-sd run edge-sd.yaml" in said
    config = load_config("edge-sd.yaml")
    assert (config.name, config.export.targets) == ("my-photos", ("executorch", "onnx"))  # type: ignore[union-attr]
    refused(call("init", "my photos"), 2, "edge-sd.yaml exists", "--overwrite")
    refused(call("init", "my photos", "--device", "andriod", "-o", "x.yaml"), 2, "unknown device 'andriod'", "android? one of")
    refused(call("init", "nothing", "-o", "x.yaml"), 2, "nothing is not a folder")
    assert not Path("x.yaml").exists()


def test_what_cannot_be_looked_into(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(EdgeSDError, match="parquet files, which are not looked into"):
        survey(str(tmp_path))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"x")
    with pytest.raises(EdgeSDError, match="none of the images"):
        survey(str(tmp_path / "bad"))
    with pytest.raises(UsageError, match="unknown device"):
        scaffold(Survey("x", 1, ((64, 64),), ()), "fridge", "x")
