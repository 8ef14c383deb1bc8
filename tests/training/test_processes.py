"""Two processes learn what one learns: the batch is drawn as a whole and then shared out."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from edge_sd.checkpoint import load_checkpoint
from edge_sd.training.state import read_metrics

TINY = ("--size", "16", "--steps", "3", "--batch-size", "4", "--count", "8", "--sample-every", "0", "--precision", "fp32")


def train(out: Path, processes: int) -> None:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, "-m", "edge_sd", "train", *TINY, "-o", str(out)]
    subprocess.run(command, env=environment, cwd=out.parent, check=True, capture_output=True, timeout=300)


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    train(tmp_path / "one", 1)
    train(tmp_path / "two", 2)
    one, two = (load_checkpoint(tmp_path / name / "checkpoint.safetensors").weights for name in ("one", "two"))
    for name, weights in one.items():
        np.testing.assert_allclose(two[name], weights, atol=1e-6, err_msg=name)
    logs = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    for ours, theirs in zip(*logs, strict=True):
        assert abs(ours["denoise"] - theirs["denoise"]) < 1e-5
