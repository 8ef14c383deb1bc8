"""Bundles whose golden images the snippets draw: one with most that a loop can meet, one with classes, one really trained."""

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from decoders import same_size_decoder
from edge_sd.bundle import Bundle
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.devices._chromium import find
from edge_sd.diffusion import SCHEDULES, compile_plan
from edge_sd.export import ExportRequest, export_bundle
from edge_sd.foreign import open_model
from edge_sd.models.unet import SpectralUNet
from edge_sd.pretrained import SHIPPED


@pytest.fixture(scope="session")
def corrected(make_model: Callable[..., SpectralUNet], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """UniPC after an analytic first step: column start, a history of three, a corrector; and a decoder."""
    folder = tmp_path_factory.mktemp("corrected")
    checkpoint = Checkpoint.of(make_model(image_size=8), SCHEDULES["cosine"], "v", Provenance(made_by="train", steps=3))
    plan = compile_plan(SCHEDULES["cosine"], solver="unipc", steps=5, prediction="v", analytic_first_step=True)
    request = ExportRequest(("onnx", "executorch"), plan=plan, seed=2**53 + 1, goldens=2)
    return export_bundle(checkpoint, folder / "corrected.edgesd", request, decoder=same_size_decoder(folder))


@pytest.fixture(scope="session")
def classes(make_model: Callable[..., SpectralUNet], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Three classes and a stochastic solver: rows from the program temporal, noise in each step."""
    checkpoint = Checkpoint.of(
        make_model(image_size=8, num_classes=3), SCHEDULES["cosine"], "v", Provenance(made_by="train", steps=3)
    )
    request = ExportRequest(("onnx",), solver="ddpm", steps=4, goldens=3)
    return export_bundle(checkpoint, tmp_path_factory.mktemp("classes") / "classes.edgesd", request)


@pytest.fixture(scope="session")
def emoji64(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The model that comes along, its latents, its decoder, 8 steps."""
    model = open_model(SHIPPED["emoji64"])
    request = ExportRequest(("onnx",), steps=8, goldens=1)
    return export_bundle(model.checkpoint, tmp_path_factory.mktemp("emoji64") / "emoji64.edgesd", request, decoder=model.decoder)


@pytest.fixture
def browser() -> Iterator[webdriver.Chrome]:
    """Chromium without a window."""
    program, driver = find(), shutil.which("chromedriver")
    assert program is not None, "chromium is missing: apt-get install -y chromium chromium-driver"
    assert driver is not None, "chromedriver is missing: apt-get install -y chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless", "--no-first-run", "--disable-background-networking", "--disable-component-update"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()
