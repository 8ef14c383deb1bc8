"""Our quantization against what else there is: one table, one run. `python tests/benchmarks/quantization.py -o FOLDER`

For MobileNet-KID also `--test-images FOLDER --features package.module:callable --feature-size 128`, as `edge-sd evaluate` has
them.

Rows: full precision; round-to-nearest (smallest to largest value, one grid for all steps); plain `nncf.quantize`, whose ranges
are means over inputs, and the same with ranges that hold all; ONNX Runtime's `quantize_static` (QDQ, a scale a channel,
smallest to largest value); Q-Diffusion-style (2302.04304: inputs at uniform intervals, roundings learnt block by block and
nothing else, one grid for all steps; skips in halves, as in our form); ours with one group of steps, and with as many as pay.
All but the foreign rows have the same layers in the same bits. Everyone draws from the same noise along the same plan of 20
steps, three seeds.

Columns: dB of the prediction by step, on the full-precision model's own trajectories: mean over steps (± over seeds) and worst
step. The same of the exported program, where the row is simulated in torch. Of the final image, each model on its own
trajectory: PSNR, KID, and the error in each wavelet band, 10·log10 of error over signal. Megabytes of the ONNX denoiser with its
weights. Milliseconds a step in ONNX Runtime, batch 1, and how much faster than full precision, interleaved A B B A: the ratio's
median and its 95 % bootstrap interval.

Quantized checkpoints stay in FOLDER and are taken again where nothing of their recipe has changed; a killed run goes on from its
last block. Everything else is made and measured anew. FOLDER/quantization.json holds all figures.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from _candidates import SETTINGS, STEPS, Candidate, Program, Settings, candidates, recipe_of, say, torch_program
from _measure import interleaved, ratio_interval

from edge_sd.checkpoint import versions
from edge_sd.data import DataConfig, open_data
from edge_sd.decoder import image_shape
from edge_sd.diffusion import Plan, gaussian_batch
from edge_sd.diffusion.execute import execute
from edge_sd.errors import EdgeSDError
from edge_sd.evaluation.distances import kernel_distance
from edge_sd.evaluation.features import Features, extract, load_features
from edge_sd.evaluation.metrics import psnr_db, snr_db
from edge_sd.evaluation.record import FeatureIdentity
from edge_sd.evaluation.reference import rgb_pixels
from edge_sd.files import write_model
from edge_sd.foreign import Foreign, open_model
from edge_sd.models.wavelets import SUBBANDS, dwt2
from edge_sd.pretrained import DEFAULT, model_path
from edge_sd.quantize._quantize import plan_of
from edge_sd.sampling import decode
from edge_sd.validation import Record

SEEDS, BATCH, BLOCKS, CALLS = (0, 1, 2), 16, 24, 8


class Row(Record):
    """One line of the table; see the top of this file. By seed where it says so."""

    setting: str
    method: str
    starts: tuple[int, ...] = ()
    by_step_db: tuple[tuple[float, ...], ...]  # seed, step
    deployed_db: float | None = None
    psnr_db: tuple[float, ...]  # seed; the mean over its images
    kid: float | None = None
    kid_error: float | None = None
    bands_db: dict[str, float]
    bytes: int | None
    checkpoint_bytes: int | None = None
    milliseconds: float | None
    faster: tuple[float, float, float] | None = None
    note: str = ""


class Table(Record):
    """quantization.json."""

    schema_version: Literal[1] = 1
    kind: Literal["quantization-benchmark"] = "quantization-benchmark"
    asked: Settings
    weights_digest: str
    solver: str
    steps: int
    seeds: tuple[int, ...] = SEEDS
    features: FeatureIdentity | None
    test_images: int | None
    versions: dict[str, str]
    rows: tuple[Row, ...] = ()


# Measuring


@dataclass(frozen=True)
class Truth:
    """What the full-precision model does, by seed.

    Attributes:
        trajectories: (x, prediction) of each step.
        images: final images, as everyone else's are compared with.
    """

    trajectories: list[list[tuple[torch.Tensor, torch.Tensor]]]
    images: list[np.ndarray]


class Meter:
    """Measures candidates against the full-precision model in torch."""

    def __init__(self, found: Foreign, plan: Plan, asked: Settings, real: np.ndarray | None, features: Features | None) -> None:
        self.decoder, self.plan, self.asked, self.features = found.decoder, plan, asked, features
        self.shape = found.checkpoint.header.model.sample_shape
        self.real = None if real is None or features is None else extract(features, real)
        program = torch_program(found.checkpoint.build(), plan)
        trajectories: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        for seed in SEEDS:
            trajectories.append([])
            self.draw(program, seed, asked.images, lambda _, x, e: trajectories[-1].append((x, e)), asked.images)
        self.truth = Truth(trajectories, [self.images(program, seed) for seed in SEEDS])

    def draw(
        self, program: Program, seed: int, count: int, observe: Callable[..., None] | None = None, batch: int = BATCH
    ) -> np.ndarray:
        """Samples 0 … count − 1 of a seed."""
        found = []
        for start in range(0, count, batch):
            indices = range(start, min(start + batch, count))

            def noise(row: int, indices: range = indices) -> torch.Tensor:
                return torch.from_numpy(gaussian_batch(seed, indices, row, self.shape))

            found.append(execute(self.plan, program, noise(-1), noise, observe).numpy())
        return np.concatenate(found)

    def images(self, program: Program, seed: int) -> np.ndarray:
        """Final images of a seed, decoded: as many as PSNR wants, or KID its third of."""
        third = math.ceil(self.asked.kid_images / len(SEEDS)) if self.real is not None else 0
        samples = self.draw(program, seed, max(self.asked.images, third))
        return samples if self.decoder is None else decode(self.decoder, samples)

    def steps(self, program: Program, seed: int) -> tuple[float, ...]:
        """dB of the prediction at each step of the full-precision model's trajectories."""
        return tuple(snr_db(e, program(x, row)) for row, (x, e) in enumerate(self.truth.trajectories[seed]))

    def measure(self, candidate: Candidate, baseline: Candidate) -> Row:
        """A row of the table."""
        deployed = candidate.deployed
        images = [self.images(candidate.program, seed) for seed in SEEDS]
        pairs = list(zip(self.truth.images, images, strict=True))
        kid = None
        if self.real is not None and self.features is not None:
            drawn = extract(self.features, rgb_pixels(np.concatenate(images)))
            kid = kernel_distance(self.real, drawn, subset_size=min(len(self.real), len(drawn)) // 2)
        milliseconds, faster = None, None
        if candidate.call is not None and baseline.call is not None:
            first, second = interleaved(baseline.call, candidate.call, blocks=BLOCKS, calls=CALLS)
            milliseconds, faster = float(np.median(second)), ratio_interval(first, second)
        return Row(
            setting=candidate.setting,
            method=candidate.method,
            starts=candidate.starts,
            by_step_db=tuple(self.steps(candidate.program, place) for place in range(len(SEEDS))),
            deployed_db=None
            if deployed is None
            else float(np.mean([self.steps(deployed, place) for place in range(len(SEEDS))])),
            psnr_db=tuple(float(np.mean([psnr_db(a, b) for a, b in zip(*pair, strict=True)])) for pair in pairs),
            kid=None if kid is None else kid.value,
            kid_error=None if kid is None else kid.standard_error,
            bands_db=band_errors(np.concatenate(self.truth.images), np.concatenate(images)),
            bytes=candidate.bytes,
            checkpoint_bytes=candidate.checkpoint_bytes,
            milliseconds=milliseconds,
            faster=faster if candidate is not baseline else None,
            note=candidate.note,
        )


def band_errors(truth: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """Error over signal in dB in each band of the images, clipped as they are seen."""
    bands = [dwt2(torch.from_numpy(value.clip(-1, 1))).unflatten(1, (-1, len(SUBBANDS))).numpy() for value in (truth, images)]
    return {name: -snr_db(bands[0][:, :, place], bands[1][:, :, place]) for place, name in enumerate(SUBBANDS)}


# What is printed


def markdown(table: Table) -> str:
    """The table of a README."""
    kid = "KID" if table.features is None else f"{table.features.name}-KID"
    head = ("bits", "method", "dB a step", "worst (step)", "deployed dB", "PSNR dB", kid, *(f"{band} dB" for band in SUBBANDS))
    lines = [(*head, "MB", "ms a step", "faster", "note"), ("---",) * (len(head) + 4)]
    for row in table.rows:
        steps = np.array(row.by_step_db)
        worst = int(steps.mean(0).argmin())
        groups = f"groups of steps begin at {', '.join(map(str, row.starts))}" if len(row.starts) > 1 else ""
        lines.append(
            (
                row.setting,
                row.method,
                f"{steps.mean():.2f} ± {steps.mean(1).std(ddof=1):.2f}",
                f"{steps.mean(0)[worst]:.2f} ({worst})",
                "" if row.deployed_db is None else f"{row.deployed_db:.2f}",
                f"{np.mean(row.psnr_db):.2f} ± {np.std(row.psnr_db, ddof=1):.2f}",
                "" if row.kid is None else f"{row.kid:.4f}" + ("" if row.kid_error is None else f" ± {row.kid_error:.4f}"),
                *(f"{row.bands_db[band]:.1f}" for band in SUBBANDS),
                "" if row.bytes is None else f"{row.bytes / 1e6:.2f}",
                "" if row.milliseconds is None else f"{row.milliseconds:.2f}",
                "" if row.faster is None else f"{row.faster[1]:.2f}× ({row.faster[0]:.2f}–{row.faster[2]:.2f})",
                "; ".join(filter(None, (groups, row.note))),
            )
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Make, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=DEFAULT)
    parser.add_argument("--settings", default=",".join(SETTINGS), help="of W8A8,W4A8,W4A16")
    parser.add_argument("--images", type=int, default=8, help="a seed, for dB and PSNR")
    parser.add_argument("--kid-images", type=int, default=120, help="over all seeds")
    parser.add_argument("--test-images", help="folder; without it there is no KID")
    parser.add_argument("--features", default="inception")
    parser.add_argument("--features-name")
    parser.add_argument("--feature-size", type=int)
    parser.add_argument("--iterations", type=int, help="of each block's reconstruction")
    parser.add_argument("--trajectories", type=int, help="of calibration")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    asked = Settings(
        settings=tuple(given.settings.split(",")),
        **{name: getattr(given, name) for name in Settings.model_fields if name != "settings"},
    )
    if not set(asked.settings) <= set(SETTINGS):
        parser.error(f"--settings are of {', '.join(SETTINGS)}")
    torch.set_num_threads(asked.threads)
    found = open_model(model_path(asked.checkpoint))
    parent = found.checkpoint
    features, real = None, None
    if given.test_images:
        features = load_features(given.features, name=given.features_name, size=given.feature_size)
        shape = parent.header.model.sample_shape
        side = (shape if found.decoder is None else image_shape(found.decoder, shape))[-1]
        real = open_data(DataConfig(source=given.test_images), side).pixels
    given.output.mkdir(parents=True, exist_ok=True)
    plan = plan_of(parent, recipe_of(parent, "ours", "W8A8", asked))
    meter = Meter(found, plan, asked, real, features)
    table = Table(
        asked=asked,
        weights_digest=parent.header.digest,
        solver=plan.header.solver,
        steps=STEPS,
        features=None if features is None else FeatureIdentity(name=features.name, digest=features.digest),
        test_images=None if real is None else len(real),
        versions=versions(),
    )
    baseline: Candidate | None = None
    for candidate in candidates(parent, asked, given.output):
        baseline = baseline or candidate
        row = meter.measure(candidate, baseline)
        table = table.model_copy(update={"rows": (*table.rows, row)})
        write_model(given.output / "quantization.json", table)
        say(f"{row.setting} {row.method}: {np.mean(row.by_step_db):.2f} dB a step, PSNR {np.mean(row.psnr_db):.2f} dB")
    print(markdown(table))


if __name__ == "__main__":
    try:
        main()
    except EdgeSDError as error:
        sys.exit(str(error))
