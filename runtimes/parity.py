"""Parity: does a runtime draw what the reference drew, step by step?

Teacher-forced, each step is fed the reference's own sample: a low step is a bad program. Free-running, the runtime follows
its own samples from the same noise: what falls there alone is drift.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import Field

from edge_sd.bundle import Bundle, Golden, trace
from edge_sd.diffusion import Plan
from edge_sd.evaluation.metrics import PSNR_DEFINITION, SNR_DEFINITION, psnr_db, snr_db
from edge_sd.runnable import Session
from edge_sd.runtimes._runtime import find_runtime
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
        return f"{self.runtime}: {'passed' if self.passed else 'FAILED'}: {found}, the gate is {self.gate_db:g} dB"


def check_parity(
    bundle: Bundle,
    runtime_name: str,
    *,
    gate_db: float = DEFAULT_GATE_DB,
    threads: int | None = None,
    observe: Callable[[int, int], None] = lambda done, total: None,
) -> ParityResult:
    """Compare a runtime with the bundle's golden trajectories; it passes if every teacher-forced step reaches the gate."""
    runtime = find_runtime(runtime_name)
    session = runtime.load(bundle, threads)
    return compare(
        bundle.path.name, runtime_name, runtime.available().detail, session, bundle.plan, bundle.golden, gate_db, observe
    )


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
    """`check_parity` for a session that is already loaded."""
    forced = np.full((len(golden.trajectories), len(plan)), np.inf)
    free = forced.copy()
    final_snr, final_psnr = [], []
    for index, reference in enumerate(golden.trajectories):
        with np.errstate(all="ignore"):  # what is not finite is reported below
            own = trace(plan, session, golden.header.seed, index)
        for row in range(len(plan)):
            prediction = session(reference.samples[row : row + 1], plan.features[row : row + 1])[0]
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
