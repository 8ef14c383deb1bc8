"""What many tests share: one thread, a model and a data set small enough for any machine, and weights that hide nothing."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, so that its pool starts with one
os.environ.setdefault("EDGE_SD_LOG", os.devnull)  # the log of whoever runs the tests is theirs

import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from once import Once, made_once

from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.data import DataConfig, ImageData, open_data
from edge_sd.diffusion import SCHEDULES
from edge_sd.models import ModelConfig
from edge_sd.models.unet import SpectralUNet
from edge_sd.runtimes._native import cache

# A shell starts what it puts into the background deaf to Ctrl-C, and so would be all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # sums of one order: weights can be compared to the bit

# How long an example takes says nothing on a machine that is shared.
hypothesis.settings.register_profile("edge-sd", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("edge-sd")

MakeModel = Callable[..., SpectralUNet]


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Give every parameter that starts at zero (closing convolutions, gates, biases) random values: no layer is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
                parameter.normal_(0, 1 / math.sqrt(fan_in), generator=generator)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Once:
    """(name, fill) → the folder of that name, filled once in these tests, by whichever process asked first."""
    base = tmp_path_factory.getbasetemp()
    return partial(made_once, (base.parent if hasattr(request.config, "workerinput") else base) / "once")


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """16 px, two levels, gated, attention on the lower level and in the middle; some 36 thousand parameters."""
    return ModelConfig(
        image_size=16, width=8, multipliers=(1, 2), blocks=1, attention=(2,), head_channels=8, norm_groups=4, gating=True
    )


@pytest.fixture(scope="session")
def make_model(tiny_config: ModelConfig) -> MakeModel:
    """(seed, changes to the tiny configuration) → a model in evaluation mode in which every weight counts."""

    def make(seed: int = 0, **changes: Any) -> SpectralUNet:
        torch.manual_seed(seed)
        model = SpectralUNet(ModelConfig.model_validate({**tiny_config.model_dump(), **changes}))
        randomise(model, seed)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def tiny_data() -> ImageData:
    """32 dead leaves of 16 px."""
    return open_data(DataConfig(count=32), 16)


@pytest.fixture(scope="session")
def tiny_checkpoint(make_model: MakeModel) -> Checkpoint:
    """A checkpoint of a model that was never trained, for everything that only needs one to be there."""
    provenance = Provenance(made_by="train", steps=3, data="nothing", parents={"teacher": "0" * 64})
    return Checkpoint.of(make_model(), SCHEDULES["cosine"], "v", provenance)


@pytest.fixture(scope="session")
def board_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's cache with an emulated board, made once, in a folder of a name that configurations might stumble over."""
    path = tmp_path_factory.mktemp("cache") / "it's, 100 %"
    environment = {**os.environ, "XDG_CACHE_HOME": str(path)}
    program = "import sys; from edge_sd.cli.main import main; sys.argv[0] = 'edge-sd'; main()"
    arguments = [sys.executable, "-c", program, "emulator", "create"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, cwd=tmp_path_factory.mktemp("elsewhere"))
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" in done.stderr
    native = cache()  # the C++ runner need not be built again for it
    native.mkdir(parents=True, exist_ok=True)
    (path / "edge-sd" / "native").symlink_to(native)
    return path


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB that is really full when it is full. Needs the right to mount: where CI lacks it, CI is what to mend."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)
