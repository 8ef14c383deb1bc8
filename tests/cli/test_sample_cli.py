"""`edge-sd sample` in a terminal: its progress to the end, and what it does not write."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from edge_sd.autoencoder import AutoencoderFile
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.cli.main import main
from edge_sd.decoder import latent_space
from edge_sd.models.autoencoder import Autoencoder, AutoencoderConfig


@pytest.fixture
def checkpoint(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A denoiser of latents of three channels, 16×16, with its decoder beside it."""
    torch.manual_seed(0)
    decoder = AutoencoderFile.of(
        Autoencoder(AutoencoderConfig(width=4, latent_channels=3)).eval(), Provenance(made_by="train-autoencoder")
    ).decoder()
    decoder.save(tmp_path / "decoder.safetensors")
    provenance = Provenance(made_by="train", parents={"autoencoder": latent_space(decoder)})
    header = tiny_checkpoint.header.model_copy(update={"provenance": provenance})
    path = tmp_path / "checkpoint.safetensors"
    Checkpoint(header, tiny_checkpoint.weights).save(path)
    return path


def sample(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """`edge-sd sample …`, and its exit code."""
    monkeypatch.setattr("sys.argv", ["edge-sd", "sample", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_progress_goes_to_the_last_step_and_the_last_image(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "grid.PNG"
    assert sample(monkeypatch, checkpoint, "-n", 2, "--steps", 3, "-o", output) == 0
    assert capsys.readouterr().err.splitlines() == ["sampling: 3/3", "decoding: 2/2", f"wrote {output}"]
    with Image.open(output) as image:
        assert (image.format, image.size) == ("PNG", (129, 64))


@pytest.mark.parametrize("name", ["s.jpg", "s.jpeg", "checkpoint.edgesd"])
def test_a_png_is_written_under_no_other_suffix(
    name: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(monkeypatch, checkpoint, "-n", 1, "--steps", 1, "-o", tmp_path / name) == 2
    error, remedy = capsys.readouterr().err.splitlines()
    assert error == f"error: {tmp_path / name}: what is written is a PNG file"
    assert remedy == f"try: -o {(tmp_path / name).with_suffix('.png')}"
    assert not (tmp_path / name).exists()


def test_a_checkpoint_is_not_overwritten_by_a_picture(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = checkpoint.read_bytes()
    assert sample(monkeypatch, checkpoint, "--overwrite", "-o", checkpoint) == 2
    assert "what is written is a PNG file" in capsys.readouterr().err
    assert checkpoint.read_bytes() == before


def test_samples_are_not_counted_as_dead_leaves_are(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Elsewhere --count is of dead leaves: one word, one meaning."""
    assert sample(monkeypatch, checkpoint, "--count", 1, "-o", tmp_path / "x.png") == 2
    assert "No such option" in capsys.readouterr().err
