"""The ablation: every variant over every seed once, intervals by Student's t, the same again after a kill."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edge_sd.bundle import open_bundle
from edge_sd.checkpoint import load_checkpoint
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import read_model
from edge_sd.pipeline import ablation
from edge_sd.pipeline.ablation import VARIANTS, Ablation, AblationConfig
from edge_sd.pipeline.config import RunConfig, load_config
from edge_sd.pipeline.run import Run
from edge_sd.pretrained import model_path
from edge_sd.report.ablation import AblationReport, Summary, ablation_table, headline, summarise

SMALL = {
    "image_size": 8,
    "width": 8,
    "multipliers": [1, 2],
    "attention": [2],
    "norm_groups": 4,
    "heads": None,
    "head_channels": 8,
}
TRAIN = {"steps": 4, "batch_size": 4, "save_every": 2, "sample_every": 0, "precision": "fp32"}
CONFIG: dict[str, Any] = {
    "kind": "ablation",
    "name": "small",
    "data": {"count": 16, "min_radius": 4.0},
    "autoencoder": {"model": {"width": 4}, "train": TRAIN},
    "teacher": {"preset": "latent16-teacher", "model": SMALL, "train": TRAIN},
    "lite": {"preset": "latent16-lite", "model": SMALL},
    "gated": {"preset": "latent16", "model": SMALL},
    "train": TRAIN,
    "variants": ["lite", "gating+frequency"],
    "seeds": [0, 3],
    "measure": {"n": 16, "plan": {"steps": 2}},
    "processes": 2,
}


def walk(out: Path, **changes: Any) -> tuple[AblationReport, dict[str, str]]:
    said: dict[str, str] = {}
    report = Ablation(AblationConfig.model_validate({**CONFIG, **changes}), out, observe=said.__setitem__).walk()
    return report, said


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ablation") / "out"
    walk(out)
    return out


def test_every_variant_is_trained_and_measured_once_for_every_seed(finished: Path) -> None:
    report = read_model(AblationReport, finished / "ablation.json")
    assert [row.variant for row in report.rows] == ["lite", "gating+frequency", "teacher"]
    assert report.seeds == (0, 3)
    assert report.n == 16
    for row in report.rows:
        assert all(len(summary.values) == 2 for summary in row.figures.values())
        assert all(math.isfinite(summary.mean) for summary in row.figures.values())
    gated = report.rows[1]
    assert gated.parts == ("gating", "frequency")
    for seed in (0, 3):
        header = load_checkpoint(finished / "variants" / f"gating+frequency-{seed}" / "checkpoint.safetensors").header
        distillation = header.provenance.settings["distill"]
        assert (distillation["spatial_weight"], distillation["frequency_weight"]) == (0, 0.1)
        assert header.model.gating
        assert header.provenance.seed == seed
    pictures = {path.name for path in finished.rglob("*.png")}
    assert {"ablation.png", "frequency.png", "lite-0.png", "teacher-3.png"} <= pictures
    assert (finished / "ablation.md").read_text() == ablation_table(report, headline(report))


def test_an_ablation_that_is_done_is_not_done_again(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    _, said = walk(finished)
    assert set(said.values()) == {"done before"}
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == before


def test_a_variant_that_was_lost_is_made_again_and_is_the_same(finished: Path) -> None:
    lost = finished / "variants" / "lite-3" / "checkpoint.safetensors"
    whole = lost.read_bytes()
    lost.unlink()
    _, said = walk(finished)
    assert lost.read_bytes() == whole
    assert {name for name, state in said.items() if state == "running"} <= {"lite-3"}


def test_an_ablation_in_one_process_is_that_in_two(finished: Path, tmp_path: Path) -> None:
    walk(tmp_path / "one", processes=1, seeds=[0])
    for variant in CONFIG["variants"]:
        file = Path("variants") / f"{variant}-0" / "checkpoint.safetensors"
        ours, theirs = (load_checkpoint(folder / file).weights for folder in (finished, tmp_path / "one"))
        for name, value in ours.items():
            np.testing.assert_allclose(theirs[name], value, atol=1e-5, err_msg=name)


def test_a_table_says_n_split_seeds_and_intervals(finished: Path) -> None:
    text = (finished / "ablation.md").read_text()
    assert "n = 16" in text
    assert "seeds 0, 3" in text
    assert text.count("±") > 6


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"variants": ["lite", "magic"]}, "unknown variant 'magic'"),
        ({"variants": ["all"]}, "lite is what the others are compared with"),
        ({"gated": {"preset": "latent16"}}, "lite denoises"),
        ({"measure": {"n": 1}}, "greater than or equal to 2"),
        ({"seeds": [0, 0]}, "each once"),
        ({"seeds": [-1]}, "greater than or equal to 0"),
        ({"variants": ["lite", "all", "all"]}, "each once"),
        ({"lite": {**CONFIG["lite"], "train": {"steps": 3}}}, "trained alike"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({**CONFIG, **changes}))
    with pytest.raises(UsageError, match=complaint):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("measure", "complaint"),
    [
        ({"plan": {"solver": "nosuch"}}, "nosuch"),
        ({"features": "test_ablation:_flat", "feature_size": 8, "n": 10}, "too few .* subsets of 1000"),
    ],
)
def test_what_cannot_be_measured_is_an_error_before_anything_is_trained(
    measure: dict[str, Any], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    with pytest.raises(UsageError, match=complaint):
        walk(tmp_path / "out", measure={"n": 16, **measure})
    assert not (tmp_path / "out" / "autoencoder").exists()


def _flat(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1)


def test_a_teacher_of_other_latents_is_refused_before_an_image_is_read(finished: Path, tmp_path: Path) -> None:
    teacher = {"checkpoint": finished / "teacher" / "checkpoint.safetensors"}
    other = {"checkpoint": model_path("emoji64").with_name("autoencoder.safetensors")}
    for autoencoder in (other, None):
        with pytest.raises(UsageError, match="another latent space"):
            walk(tmp_path / "out", teacher=teacher, autoencoder=autoencoder, data={"source": str(tmp_path / "nowhere")})


def test_a_run_is_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="one process"):
        walk(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_variant_whose_process_dies_ends_the_ablation_in_words_and_it_goes_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out" / "evaluations" / "lite-3.json").unlink()
    monkeypatch.setattr(ablation, "_train_and_measure", _die)
    with pytest.raises(EdgeSDError, match="died"):
        walk(tmp_path / "out")
    monkeypatch.undo()
    report, said = walk(tmp_path / "out")
    assert {name for name, state in said.items() if state == "running"} <= {"lite-3"}
    whole = read_model(AblationReport, finished / "ablation.json")
    assert [row.figures for row in report.rows] == [row.figures for row in whole.rows]


def _die(*arguments: object) -> float:
    os._exit(9)


def test_features_that_do_not_load_are_an_error_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(EdgeSDError, match="nowhere"):
        walk(tmp_path / "out", measure={"n": 16, "features": "nowhere:Features"})
    assert not (tmp_path / "out" / "autoencoder").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years")
    with pytest.raises(UsageError, match="is no run"):
        walk(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_seven_variants_are_the_papers_grid() -> None:
    on = {name: tuple(part for part, value in variant.model_dump().items() if value) for name, variant in VARIANTS.items()}
    assert on == {
        "lite": (),
        "gating": ("gating",),
        "spatial": ("spatial",),
        "frequency": ("frequency",),
        "gating+spatial": ("gating", "spatial"),
        "gating+frequency": ("gating", "frequency"),
        "all": ("gating", "spatial", "frequency"),
    }


def test_an_interval_is_students() -> None:
    """Three values: mean ± 4.303·s/√3, from any table of t."""
    found = summarise([1.0, 2.0, 4.0], [1.5, 2.0, 3.0])
    assert found.mean == pytest.approx(7 / 3)
    assert found.half_width == pytest.approx(4.303 * np.std([1, 2, 4], ddof=1) / math.sqrt(3), rel=1e-3)
    assert found.difference == pytest.approx(0.5 / 3)
    assert found.difference_half_width == pytest.approx(4.303 * np.std([-0.5, 0, 1], ddof=1) / math.sqrt(3), rel=1e-3)
    assert not found.beyond
    assert summarise([1.0]).half_width is None
    assert summarise([1.0, 1.1, 0.9], [2.0, 2.1, 1.9]).beyond
    assert summarise([2.0, 2.1, 1.9], [1.0, 1.1, 0.9]).beyond
    assert not summarise([1.0], [2.0]).beyond


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=15), st.floats(-10, 10))
def test_a_constant_on_both_sides_changes_no_difference(values: list[float], shift: float) -> None:
    one = summarise(values, list(reversed(values)))
    other = summarise([value + shift for value in values], [value + shift for value in reversed(values)])
    assert isinstance(one, Summary)
    assert one.difference is not None
    assert other.difference == pytest.approx(one.difference, abs=1e-6)


# An ordinary run in a latent space


def test_a_run_with_an_autoencoder_ends_in_a_bundle_that_draws_images(tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {
            "name": "latent",
            "data": CONFIG["data"],
            "autoencoder": CONFIG["autoencoder"],
            "teacher": CONFIG["teacher"],
            "student": {"preset": "latent16", "model": SMALL, "train": TRAIN},
            "sample": {"steps": 2, "count": 2},
            "export": {"goldens": 1},
            "bench": {"runtimes": ["onnxruntime"], "threads": 1, "warmup": 1, "iterations": 2},
        }
    )
    results = Run(config, tmp_path / "out").walk()
    assert all(result.passed for result in results)
    (report,) = json.loads((tmp_path / "out" / "report.json").read_text())["subjects"]
    assert {spectrum["role"] for spectrum in report["gallery"]["spectra"]} == {"real", "teacher", "student", "exported"}
    assert report["exported_psnr_db"] > 60
    contracts = open_bundle(tmp_path / "out" / "latent.edgesd").manifest.contracts
    assert {contract.program for contract in contracts} == {"denoiser", "decoder"}


def test_an_autoencoder_of_other_channels_than_the_student_is_refused_at_once(tmp_path: Path) -> None:
    config = {**CONFIG, "autoencoder": {"model": {"width": 4, "latent_channels": 5}, "train": TRAIN}}
    with pytest.raises(UsageError, match="makes 5 channels, the student denoises 4"):
        walk(tmp_path / "out", **{"autoencoder": config["autoencoder"]})
