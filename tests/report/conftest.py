"""Two small bundles with results beside them, one of them quantized; and a browser to look at what is made of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import browser as chromium
from once import Once
from selenium import webdriver

from edge_sd.bundle import open_bundle
from edge_sd.checkpoint import Checkpoint
from edge_sd.devices import Job, bench
from edge_sd.evaluation.record import Evaluation, FeatureIdentity, Figure, Origin, RealImages, Spectra
from edge_sd.export import ExportRequest, export_bundle
from edge_sd.files import write_model
from edge_sd.report.assemble import Choice, assemble
from edge_sd.report.data import Report
from edge_sd.report.parity import difference_sheet, write_parity
from edge_sd.report.pictures import Files
from edge_sd.runtimes.parity import check_parity
from verbs import succeeded

FOLDER = "report-figures"


def evaluation_of(path: Path, kid: float) -> Evaluation:
    """An evaluation of a bundle as a file would hold it; its figures are given."""
    identity = FeatureIdentity(name="some", digest="f" * 64)
    shared: dict[str, Any] = {"n": 64, "split": "test"}
    figures = (
        Figure(name="some-KID", value=kid, standard_error=0.05, features=identity, definition="a distance", **shared),
        Figure(name="precision", value=0.25, standard_error=0.02, best=1.0, features=identity, definition="a share", **shared),
        Figure(name="wavelet SWD HH1", value=0.2, standard_error=0.01, definition="a distance", note="of pixels", **shared),
    )
    curve = (1.0, 0.5, 0.25)
    return Evaluation(
        origin=Origin(
            kind="bundle", name=path.name, digest=open_bundle(path).manifest.digest, runtime="onnxruntime", solver="dpmpp",
            spacing="trailing", steps=4, nfe=4, seed=0,
        ),
        real=RealImages(about="64 leaves", digest="d" * 64, split="test", available=64, seed=0),
        size=16, n=64, figures=figures, spectra=Spectra(frequencies=curve, real=curve, generated=curve, gap_db=(0.0, 0.0, 0.0)),
        settings={}, versions={}, seconds={},
    )  # fmt: skip


def _measured(path: Path, folder: Path, runtimes: tuple[str, ...], kid: float) -> None:
    """Parity, times and an evaluation, as the verbs would leave them in a folder."""
    bundle = open_bundle(path)
    found = [check_parity(bundle, name) for name in runtimes]
    sheets = {result.title: difference_sheet(bundle.golden, evidence) for result, evidence in found}
    write_parity(folder / "parity", [result for result, _ in found], sheets)
    job = Job(runtime="onnxruntime", prove=False, least_warmup=2, most_warmup=4, iterations=12, images=1, most_seconds=20)
    write_model(folder / "bench.json", bench("host", bundle, job))
    write_model(folder / "evaluation.json", evaluation_of(path, kid))


@pytest.fixture(scope="session")
def exact(tiny_checkpoint: Checkpoint, once: Once) -> Path:
    """tiny.edgesd for ONNX, with parity, times and an evaluation beside it."""

    def fill(folder: Path) -> None:
        export_bundle(tiny_checkpoint, folder / "tiny.edgesd", ExportRequest(("onnx",), steps=4, goldens=2))
        _measured(folder / "tiny.edgesd", folder, ("onnxruntime", "torch"), 1.5)

    return once("exact", fill) / "tiny.edgesd"


@pytest.fixture(scope="session")
def quantized(tiny_checkpoint: Checkpoint, once: Once) -> Path:
    """The folder of a quantization of the same model to W8A8, rounded to nearest, with results in it."""

    def fill(folder: Path) -> None:
        tiny_checkpoint.save(folder / "tiny.safetensors")
        few = ("--iterations", 0, "--trajectories", 2, "--groups", 1, "--steps", 4)
        succeeded("quantize", folder / "tiny.safetensors", "--bits", 8, *few, "-o", folder / "w8a8")
        _measured(folder / "w8a8" / "w8a8.edgesd", folder / "results", ("onnxruntime",), 1.8)

    return once("quantized", fill) / "w8a8"


@pytest.fixture(scope="session")
def compared(exact: Path, quantized: Path) -> tuple[Report, Files]:
    """A report of both, and its pictures."""
    return assemble([exact, quantized], FOLDER, Choice(results=(quantized.parent / "results",)))


@pytest.fixture(scope="session")
def single(exact: Path) -> tuple[Report, Files]:
    """A report of the one in full precision."""
    return assemble([exact], FOLDER)


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    """One for all tests."""
    with chromium() as opened:
        yield opened
