"""Samplers at few steps, in one table. `python tests/benchmarks/few_steps.py --data PHOTOS --features MODULE:CALLABLE -o FOLDER`

Rows: DDPM; DDIM; FastDPM by variances and by steps, each as DDPM-rev (κ = 1) and as DDIM-rev (κ = 0), levels linear;
DPM-Solver++(2M); UniPC; DDIM with tuned timesteps; and the plans that a search found, by either objective. All others have their
own default spacing. Columns: kernel distance of n samples' features to those of real images, and root mean square distance to
where 1000 steps of UniPC end from the same noise, means over three seeds; ± is half the range of the three.

Searches and tuned plans are made by `edge-sd search` and `edge-sd plan tune` where FOLDER does not hold them; every figure is
kept in FOLDER/cells.jsonl. A killed run goes on where it was.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_sd.data import DataConfig, open_data
from edge_sd.decoder import image_shape
from edge_sd.diffusion import Plan, compile_plan, load_plan
from edge_sd.evaluation.draw import cores
from edge_sd.evaluation.features import extract, load_features
from edge_sd.evaluation.reference import choose
from edge_sd.files import tensors_digest
from edge_sd.foreign import open_model
from edge_sd.pretrained import DEFAULT, model_path
from edge_sd.search.objectives.kid import save_real
from edge_sd.search.record import Lines
from edge_sd.search.workers import Opening, Workers
from edge_sd.validation import Record

COLUMNS, SEEDS = (5, 10, 20, 50), (101, 102, 103)  # seeds that no search has seen
KNOWN = {
    "DDPM": {"solver": "ddpm"},
    "DDIM": {"solver": "ddim"},
    "FastDPM VAR, DDPM-rev": {"solver": "fastdpm-var", "eta": 1.0},
    "FastDPM VAR, DDIM-rev": {"solver": "fastdpm-var"},
    "FastDPM STEP, DDPM-rev": {"solver": "fastdpm-step", "eta": 1.0},
    "FastDPM STEP, DDIM-rev": {"solver": "fastdpm-step"},
    "DPM-Solver++(2M)": {"solver": "dpmpp"},
    "UniPC": {"solver": "unipc"},
}
TUNED = "DDIM, tuned timesteps"
# Objective of each search, and its trials by steps (0: as many as usual): one takes the longer, the more steps it has, and KID
# hardly tells plans of many steps apart.
FOUND = {"S3 by distance": ("trajectory", {5: 0, 10: 0, 20: 160, 50: 40}), "S3 by KID": ("kid", {5: 200, 10: 200})}


class Owner(Record):
    """What the figures belong to."""

    kind: str = "few-steps"
    model: str
    real: str
    n: int
    fine: int


class Cell(Record):
    """One plan's figure at one seed."""

    plan: str  # SHA-256 over its columns
    seed: int
    objective: str
    value: float = Field(allow_inf_nan=False)


@dataclass(frozen=True)
class Asked:
    """What the table is of."""

    model: Path
    given: str
    data: str
    features: str
    features_name: str | None
    feature_size: int | None
    n: int
    real: int
    fine: int
    out: Path


def plans(asked: Asked) -> Iterator[tuple[str, int, Plan]]:
    """(row, steps, plan), made where they are missing."""
    header = open_model(asked.model).checkpoint.header
    for name, choice in KNOWN.items():
        for steps in COLUMNS:
            yield name, steps, compile_plan(header.noise_schedule, steps, prediction=header.prediction, **choice)  # type: ignore[arg-type]
    for steps in COLUMNS:
        tuned = asked.out / f"tuned-{steps}.safetensors"
        if not tuned.exists():
            verb("plan", "tune", asked.given, "--solver", "ddim", "--steps", steps, "-o", tuned)
        yield TUNED, steps, load_plan(tuned)
    for name, (objective, trials) in FOUND.items():
        folder = asked.out / objective
        for steps, count in trials.items():
            if not (folder / f"steps-{steps}" / "search.json").exists():
                more: list[object] = ["--evaluations", count] if count else []
                if objective == "kid":
                    more += ["--data", asked.data, "--features", asked.features]
                    more += ["--features-name", asked.features_name] if asked.features_name else []
                    more += ["--feature-size", asked.feature_size] if asked.feature_size else []
                verb("search", asked.given, "--steps", steps, *more, "-o", folder)
            yield name, steps, load_plan(folder / f"steps-{steps}" / "plan.safetensors")


def verb(*words: object) -> None:
    """Run one of edge-sd's."""
    subprocess.run([sys.executable, "-m", "edge_sd", *map(str, words)], check=True)


def figures(asked: Asked, rows: list[tuple[str, int, Plan]]) -> dict[tuple[str, int, str], NDArray[np.float64]]:
    """(row, steps, objective) → the values at each seed."""
    header = open_model(asked.model).checkpoint.header
    extractor = load_features(asked.features, name=asked.features_name, size=asked.feature_size)
    data = open_data(DataConfig(source=asked.data), size_of(asked.model))
    pixels, chosen = choose(data, asked.real, seed=0)
    real = asked.out / "real.safetensors"
    save_real(real, extract(extractor, pixels), extractor, chosen.about, chosen.digest)
    lines = Lines(asked.out / "cells.jsonl", Cell, Owner(model=header.digest, real=chosen.digest, n=asked.n, fine=asked.fine))
    known = {(cell.plan, cell.seed, cell.objective): cell.value for cell in lines.read()}
    features: dict[str, Any] = {"real": str(real), "features": asked.features, "features_name": asked.features_name}
    settings = {
        "trajectory": {"fine": asked.fine, "cache": str(asked.out / "fine")},
        "kid": {**features, "features_size": asked.feature_size},
    }
    digests = {id(plan): tensors_digest(plan.columns) for _, _, plan in rows}
    for objective, told in settings.items():
        with Workers(Opening(asked.model, objective, tuple(told.items())), cores()) as workers, lines.appending() as append:
            for seed in SEEDS:
                missing = [plan for _, _, plan in rows if (digests[id(plan)], seed, objective) not in known]
                if missing:
                    workers.prepare(seed, asked.n)
                for index, score in workers.scores(missing, seed=seed, count=asked.n):
                    cell = Cell(plan=digests[id(missing[index])], seed=seed, objective=objective, value=score.value)
                    known[cell.plan, seed, objective] = cell.value
                    append(cell)
                print(f"{objective}, seed {seed}: done", file=sys.stderr, flush=True)
    return {
        (name, steps, objective): np.array([known[digests[id(plan)], seed, objective] for seed in SEEDS])
        for name, steps, plan in rows
        for objective in settings
    }


def size_of(model: Path) -> int:
    """Pixels of the pictures."""
    found = open_model(model)
    shape = found.checkpoint.header.model.sample_shape
    return (shape if found.decoder is None else image_shape(found.decoder, shape))[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=DEFAULT)
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", required=True)
    parser.add_argument("--features-name")
    parser.add_argument("--feature-size", type=int)
    parser.add_argument("-n", type=int, default=300)
    parser.add_argument("--real", type=int, default=1000)
    parser.add_argument("--fine", type=int, default=1000)
    parser.add_argument("-o", "--out", type=Path, default=Path("out/few-steps"))
    given = parser.parse_args()
    asked = Asked(
        model_path(given.model).resolve(), given.model, given.data, given.features, given.features_name, given.feature_size,
        given.n, given.real, given.fine, given.out.resolve(),
    )  # fmt: skip
    asked.out.mkdir(parents=True, exist_ok=True)
    rows = list(plans(asked))
    found = figures(asked, rows)
    for objective, title in (
        ("kid", f"{asked.features_name or 'kernel'}-KID"),
        ("trajectory", f"distance to {asked.fine} steps"),
    ):
        print(f"\n{title}, n = {asked.n}, mean of seeds {SEEDS}\n")
        print("| | " + " | ".join(map(str, COLUMNS)) + " |")
        print("| --- |" + " ---: |" * len(COLUMNS))
        for name in dict.fromkeys(name for name, _, _ in rows):
            cells = []
            for steps in COLUMNS:
                if (name, steps, objective) not in found:
                    cells.append("")
                    continue
                values = found[name, steps, objective]
                best = min(found[other, steps, objective].mean() for other, column, _ in rows if column == steps)
                text = f"{values.mean():.3g} ± {np.ptp(values) / 2:.2g}"
                cells.append(f"**{text}**" if values.mean() <= best else text)
            print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
