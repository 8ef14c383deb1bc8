"""One whole run for the session, small enough for a test, and copies of it to be changed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from once import Once

from edge_sd.pipeline.config import RunConfig
from edge_sd.pipeline.run import Run

Walk = Callable[..., dict[str, str]]


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in changes.items():
        merged[key] = _merged(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
    return merged


@pytest.fixture(scope="session")
def make_config() -> Callable[..., dict[str, Any]]:
    """(changes) → the settings of a run of a few seconds: 16 px, 10 steps of training, 3 of sampling."""
    model = {"image_size": 16, "width": 8, "multipliers": [1, 2], "attention": [2], "head_channels": 8}
    train = {"steps": 10, "batch_size": 4, "save_every": 2, "sample_every": 0}
    config = {
        "name": "small",
        "data": {"count": 16, "min_radius": 4.0},
        "teacher": {"preset": "tiny16-teacher", "model": model, "train": {**train, "sample_every": 10}},
        "student": {"preset": "tiny16", "model": model, "train": train},
        "sample": {"steps": 3, "count": 4},
        "export": {"goldens": 1},
        "parity": {"runtimes": ["onnxruntime", "torch"]},
        "bench": {"runtimes": ["onnxruntime"], "threads": 1, "warmup": 2, "iterations": 5},
    }
    return lambda **changes: _merged(config, changes)


@pytest.fixture(scope="session")
def walk(make_config: Callable[..., dict[str, Any]]) -> Walk:
    """(out, overwrite, changes) → what was said of each stage: "running" or "done before"."""

    def walked(out: Path, *, overwrite: bool = False, **changes: Any) -> dict[str, str]:
        said: dict[str, str] = {}
        config = RunConfig.model_validate(make_config(**changes))
        Run(config, out, overwrite=overwrite, observe=said.__setitem__).walk()
        return said

    return walked


@pytest.fixture(scope="session")
def finished(walk: Walk, once: Once) -> Path:
    """The folder of a run that nothing disturbed."""
    return once("finished", lambda folder: walk(folder / "out")) / "out"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "out"))
