"""The page's modules by themselves, run by Node.js: noise, the loop, files, hashes and times."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edge_sd.diffusion import SCHEDULES, compile_plan
from edge_sd.diffusion.execute import execute
from edge_sd.diffusion.noise import gaussian

WEB = Path(__file__).parent / "web"
STEPS, SHAPE, SEED, IMAGE = 7, (1, 3, 5, 4), 2**63 - 1, 2**32 + 1


@pytest.mark.parametrize("name", sorted(file.name for file in WEB.glob("*.test.mjs")))
def test_units(name: str) -> None:
    done = subprocess.run(["node", "--test", WEB / name], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "# fail 0" in done.stdout
    assert "# pass 0" not in done.stdout


@pytest.mark.parametrize(
    ("solver", "analytic"), [("ddim", False), ("ddpm", False), ("dpmpp", False), ("unipc", False), ("unipc", True)]
)
def test_the_loop_is_the_specification_to_the_bit(solver: str, analytic: bool, tmp_path: Path) -> None:
    """Given the same predictions: coefficients, order of operations, memory, noise, and what scales the first of it."""
    plan = compile_plan(SCHEDULES["cosine"], solver=solver, steps=STEPS, prediction="v", analytic_first_step=analytic)
    plan.save(tmp_path / "plan.safetensors")
    predictions = np.random.default_rng(3).standard_normal((len(plan), *SHAPE[1:])).astype(np.float32)
    save_file({"predictions": predictions}, tmp_path / "predictions.safetensors")
    arguments = [tmp_path / "plan.safetensors", tmp_path / "predictions.safetensors", str(SEED), str(IMAGE), tmp_path / "out"]
    subprocess.run(["node", WEB / "loop.mjs", *arguments], timeout=60, check=True)
    xs: list[np.ndarray] = []

    def program(x: np.ndarray, row: int) -> np.ndarray:
        xs.append(x)
        return predictions[row][None]

    def noise(row: int) -> np.ndarray:
        return gaussian(SEED, IMAGE, row, SHAPE)

    xs.append(execute(plan, program, noise(-1), noise))
    found = load_file(tmp_path / "out")
    assert len(found) == len(xs) == len(plan) + 1
    for row, x in enumerate(xs):
        assert np.array_equal(found[str(row)].view(np.uint32), x.reshape(-1).view(np.uint32)), row
