"""Parity: does a runtime draw what the reference drew, step by step?

Teacher-forced, each step is fed the reference's own sample: a low step is a bad program. Free-running, the runtime follows
its own samples from the same noise: what falls there alone is drift.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_sd.bundle import Bundle, Golden, trace
from edge_sd.diffusion import Plan
from edge_sd.evaluation.metrics import PSNR_DEFINITION, SNR_DEFINITION, psnr_db, snr_db
from edge_sd.runnable import Session
from edge_sd.runtimes._runtime import find_runtime, load_denoiser
from edge_sd.validation import Record

DEFAULT_GATE_DB = 80.0


class StepParity(Record):
    """One row of the plan; decibels are of the worst trajectory.

    Attributes:
        teacher_forced_db: SNR of the prediction, the reference's sample given.
        free_running_db: SNR of the sample that goes into this step, against the reference's.
    """

    row: int
    timestep: float
    teacher_forced_db: float
    free_running_db: float


class ParityResult(Record):
    """parity.json of one runtime."""

    schema_version: Literal[1] = 1
    kind: Literal["parity"] = "parity"
    bundle: str
    runtime: str
    runtime_version: str
    reference: str
    trajectories: int
    gate_db: float
    steps: tuple[StepParity, ...]
    final_snr_db: float
    final_psnr_db: float
    temporal_snr_db: float | None = None  # of the rows that the program temporal makes, where the bundle has one
    image_snr_db: float | None = None  # of the decoder, given the reference's last sample, where the bundle has one
    passed: bool
    definitions: dict[str, str] = Field(default_factory=lambda: {"snr_db": SNR_DEFINITION, "psnr_db": PSNR_DEFINITION})

    @property
    def worst(self) -> StepParity:
        """The step whose teacher-forced prediction is farthest off."""
        return min(self.steps, key=lambda step: step.teacher_forced_db)

    @property
    def verdict(self) -> str:
        """One sentence."""
        worst = self.worst
        found = f"the worst step is {worst.row} (timestep {worst.timestep:g}) at {worst.teacher_forced_db:.1f} dB"
        others = {"temporal": self.temporal_snr_db, "decoder": self.image_snr_db}
        found += "".join(f", {name} at {value:.1f} dB" for name, value in others.items() if value is not None)
        return f"{self.runtime}: {'passed' if self.passed else 'FAILED'}: {found}, the gate is {self.gate_db:g} dB"


def check_parity(
    bundle: Bundle,
    runtime_name: str,
    *,
    gate_db: float = DEFAULT_GATE_DB,
    threads: int | None = None,
    observe: Callable[[int, int], None] = lambda done, total: None,
) -> ParityResult:
    """Compare a runtime with the bundle's golden trajectories; it passes if every program reaches the gate at every step."""
    runtime = find_runtime(runtime_name)
    found = compare(
        bundle.path.name,
        runtime_name,
        runtime.available().detail,
        load_denoiser(runtime, bundle, threads),
        bundle.plan,
        bundle.golden,
        gate_db,
        observe,
    )
    programs = {contract.program for contract in bundle.manifest.contracts}
    goldens = bundle.golden.trajectories
    worst: dict[str, float] = {}
    if "temporal" in programs:
        temporal = runtime.load(bundle, threads, "temporal")
        labels: list[tuple[NDArray[np.int32], ...]] = [(np.array([y], dtype=np.int32),) for y in bundle.golden.header.labels]
        labels = labels or [()] * len(goldens)
        times = bundle.plan.timestep.astype(np.float32)[:, None]
        worst["temporal_snr_db"] = min(
            snr_db(golden.features, np.concatenate([temporal(t, *label) for t in times]))
            for golden, label in zip(goldens, labels, strict=True)
        )
    if "decoder" in programs:
        decoder = runtime.load(bundle, threads, "decoder")
        worst["image_snr_db"] = min(
            snr_db(golden.image, decoder(golden.final[None])[0]) for golden in goldens if golden.image is not None
        )
    passed = found.passed and all(value >= gate_db for value in worst.values())
    return found.model_copy(update={**worst, "passed": passed})


def compare(
    bundle_name: str,
    runtime_name: str,
    runtime_version: str,
    session: Session,
    plan: Plan,
    golden: Golden,
    gate_db: float,
    observe: Callable[[int, int], None] = lambda done, total: None,
) -> ParityResult:
    """Compare a denoiser that is already loaded."""
    forced = np.full((len(golden.trajectories), len(plan)), np.inf)
    free = forced.copy()
    final_snr, final_psnr = [], []
    for index, reference in enumerate(golden.trajectories):
        with np.errstate(all="ignore"):  # what is not finite is reported below
            own = trace(plan, session, golden.header.seed, index, reference.features)
        for row in range(len(plan)):
            session.select(int(plan.program[row]))
            prediction = session(reference.samples[row : row + 1], reference.features[row : row + 1])[0]
            forced[index, row] = snr_db(reference.predictions[row], prediction)
            free[index, row] = snr_db(reference.samples[row], own.samples[row])
            observe(index * len(plan) + row + 1, forced.size)
        final_snr.append(snr_db(reference.final, own.final))
        final_psnr.append(psnr_db(reference.final, own.final))
    steps = tuple(
        StepParity(
            row=row,
            timestep=float(plan.timestep[row]),
            teacher_forced_db=forced[:, row].min(),
            free_running_db=free[:, row].min(),
        )
        for row in range(len(plan))
    )
    return ParityResult(
        bundle=bundle_name,
        runtime=runtime_name,
        runtime_version=runtime_version,
        reference=golden.header.reference,
        trajectories=len(golden.trajectories),
        gate_db=gate_db,
        steps=steps,
        final_snr_db=min(final_snr),
        final_psnr_db=min(final_psnr),
        passed=bool(forced.min() >= gate_db),
    )
