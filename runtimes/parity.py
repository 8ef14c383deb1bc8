"""Parity: does a runtime draw what the reference drew, step by step and band by band?

Teacher-forced, each step is fed the reference's own sample: a low step is a bad program. Free-running, the runtime follows its
own samples from the same noise: what falls there alone is drift. The gate is not a matter of taste: it lies a margin below the
noise floor, which is measured (`floor`). A quantized program amplifies every rounding, so it is held to a stated budget instead.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_sd.bundle import Bundle, Trajectory
from edge_sd.evaluation.metrics import (
    BANDS_DEFINITION,
    PSNR_DEFINITION,
    SNR_DEFINITION,
    SSIM_DEFINITION,
    band_snr_db,
    psnr_db,
    snr_db,
    ssim,
)
from edge_sd.runtimes._runtime import find_runtime
from edge_sd.runtimes.evidence import Evidence, gather
from edge_sd.runtimes.floor import Floor, Precision, noise_floor
from edge_sd.validation import Record

Outcome = Literal["passed", "inconclusive", "failed"]

MARGIN_DB = 20.0
BUDGET_DB = 10.0
# A gate below this says nothing: where the reference itself is lost in rounding, so is whatever is compared with it.
LEAST_GATE_DB = 20.0


class Gate(Record):
    """What is asked for.

    Attributes:
        margin_db: of a lossless program: how far below the floor it may be. Kernels of another library sum in yet other orders.
        budget_db: of a quantized program: the least at any step, whatever the floor.
        fixed_db: in place of both, for whole predictions; None: as above.
    """

    margin_db: float = Field(default=MARGIN_DB, ge=0)
    budget_db: float = BUDGET_DB
    fixed_db: float | None = None


class Figure(Record):
    """One comparison; decibels are of the worst trajectory.

    Attributes:
        floor_db: what the reference reaches against itself.
        gate_db: what is asked for; None: it is told, and not judged.
    """

    value_db: float
    floor_db: float
    gate_db: float | None
    outcome: Outcome

    @classmethod
    def against_floor(cls, value_db: float, floor_db: float, margin_db: float) -> "Figure":
        """Judge by the floor. Inconclusive where the floor itself is too low for a gate."""
        gate_db = floor_db - margin_db
        conclusive: Outcome = "passed" if gate_db >= LEAST_GATE_DB else "inconclusive"
        return cls(value_db=value_db, floor_db=floor_db, gate_db=gate_db, outcome=conclusive if value_db >= gate_db else "failed")

    @classmethod
    def against_fixed(cls, value_db: float, floor_db: float, margin_db: float, gate_db: float) -> "Figure":
        """Judge by a gate that somebody chose. Inconclusive where it is missed, and the floor says that it may well be."""
        missed: Outcome = "failed" if value_db < floor_db - margin_db else "inconclusive"
        return cls(value_db=value_db, floor_db=floor_db, gate_db=gate_db, outcome="passed" if value_db >= gate_db else missed)

    @property
    def headroom_db(self) -> float:
        """How far above its gate it is."""
        return float("inf") if self.gate_db is None else self.value_db - self.gate_db


def _rank(figure: Figure) -> tuple[float, float]:
    return figure.headroom_db, figure.value_db


class StepParity(Record):
    """One row of the plan; decibels are of the worst trajectory.

    Attributes:
        forced: SNR of the prediction, the reference's sample given.
        bands: the same of each wavelet subband of it.
        free_running_db: SNR of the sample that goes into this step, against the reference's.
    """

    row: int
    timestep: float
    forced: Figure
    bands: dict[str, Figure]
    free_running_db: float

    @property
    def name(self) -> str:
        """Which step it is, in words."""
        return f"step {self.row} (timestep {self.timestep:g})"


class Pictures(Record):
    """The image that the runtime drew from the same noise, end to end, against the reference's: the worst trajectory.

    Attributes:
        snr_db: of the last sample, before the decoder.
        ssim: None where the image is smaller than its window.
    """

    snr_db: float
    psnr_db: float
    ssim: float | None


class ParityResult(Record):
    """parity.json of one runtime.

    Attributes:
        bundle_digest: the manifest's own; empty in results of before it was kept.
        device: where it ran, as `--device` names it.
        quantized: activations are on grids; the gate is a budget.
        temporal, decoder: SNR of the bundle's other programs, where it has them.
    """

    schema_version: Literal[2] = 2
    kind: Literal["parity"] = "parity"
    bundle: str
    bundle_digest: str = ""
    runtime: str
    runtime_version: str
    device: str = "host"
    reference: str
    trajectories: int
    threads: int | None  # of one call; None: the runtime's own choice
    precision: Precision
    quantized: bool
    emulated: bool = False
    gate: Gate
    perturbations: tuple[str, ...]
    steps: tuple[StepParity, ...]
    final: Pictures
    temporal: Figure | None = None
    decoder: Figure | None = None
    definitions: dict[str, str] = Field(
        default_factory=lambda: {
            "snr_db": SNR_DEFINITION,
            "psnr_db": PSNR_DEFINITION,
            "ssim": SSIM_DEFINITION,
            "bands": BANDS_DEFINITION,
        }
    )

    @property
    def title(self) -> str:
        """The runtime, and the device unless it is this machine."""
        return self.runtime if self.device == "host" else f"{self.runtime} on {self.device}"

    @property
    def figures(self) -> dict[str, Figure]:
        """All that is judged, by what it is: whole predictions and other programs first, then bands."""
        found = {step.name: step.forced for step in self.steps}
        others = {"temporal": self.temporal, "decoder": self.decoder}
        found |= {name: figure for name, figure in others.items() if figure is not None}
        bands = {f"band {name} of {step.name}": figure for step in self.steps for name, figure in step.bands.items()}
        return found | {name: figure for name, figure in bands.items() if figure.gate_db is not None}

    @property
    def worst_step(self) -> StepParity:
        """The step whose prediction is farthest off."""
        return min(self.steps, key=lambda step: step.forced.value_db)

    @property
    def worst_band(self) -> tuple[StepParity, str] | None:
        """Step and name of the subband nearest to its gate, or lowest where they are not judged; None without subbands."""
        cells = [(step, name) for step in self.steps for name in step.bands]
        return min(cells, key=lambda cell: _rank(cell[0].bands[cell[1]]), default=None)

    @property
    def lowest_free_db(self) -> float:
        """Where the free-running samples are farthest from the reference's."""
        return min(step.free_running_db for step in self.steps)

    @property
    def outcome(self) -> Outcome:
        """Failed where any figure is. Inconclusive where a whole prediction or another program is: a band may be empty."""
        if any(figure.outcome == "failed" for figure in self.figures.values()):
            return "failed"
        whole = [figure for name, figure in self.figures.items() if not name.startswith("band")]
        return "inconclusive" if any(figure.outcome == "inconclusive" for figure in whole) else "passed"

    @property
    def passed(self) -> bool:
        """Whether it is shown that the runtime does what the reference does."""
        return self.outcome == "passed"

    @property
    def decisive(self) -> tuple[str, Figure]:
        """The figure with the least headroom of those that make the outcome what it is, and its name."""
        found = [(name, figure) for name, figure in self.figures.items() if figure.outcome == self.outcome]
        return min(found, key=lambda item: item[1].headroom_db)

    @property
    def verdict(self) -> str:
        """One sentence."""
        name, figure = self.decisive
        word = "passed, nearest to its gate is" if self.passed else f"{self.outcome.upper()}:"
        asked = "budget" if self.quantized and self.gate.fixed_db is None and name.startswith("step") else "gate"
        return (
            f"{self.title}: {word} {name} at {figure.value_db:.1f} dB "
            f"({asked} {figure.gate_db:.1f} dB, noise floor {figure.floor_db:.1f} dB)"
        )


def check_parity(
    bundle: Bundle,
    runtime_name: str,
    *,
    gate: Gate | None = None,
    floor: Floor | None = None,
    threads: int | None = None,
    observe: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[ParityResult, tuple[Evidence, ...]]:
    """Compare a runtime with the bundle's golden trajectories.

    Args:
        floor: of this bundle in the program's precision, where it has been measured already.

    Raises:
        UsageError, InstallationError: no such runtime, or not here.
        EdgeSDError: a program is missing, damaged, or dies.
    """
    runtime = find_runtime(runtime_name)
    bundle.program(runtime.target)
    floor = floor or noise_floor(bundle, precision_of(bundle, runtime.target))
    evidence = gather(bundle, runtime, threads, observe)
    version = runtime.available().detail
    quantized = activations_on_grids(bundle, runtime.target)
    result = judge(
        *(bundle, runtime_name, version, evidence, floor, gate or Gate()),
        threads=threads,
        quantized=quantized,
        emulated=runtime.emulated,
    )
    return result, evidence


def precision_of(bundle: Bundle, target: str) -> Precision:
    """The arithmetic that a target's denoiser was exported in."""
    return "fp16" if bundle.program(target).options.get("precision") == "fp16" else "fp32"


def activations_on_grids(bundle: Bundle, target: str) -> bool:
    """Whether a target's denoiser rounds activations to integers, by request or by what its kernels compute with."""
    program = bundle.program(target)
    # The reference has no table of its own: it simulates what every other program was asked for.
    tables = [each.layers for each in bundle.manifest.programs if target == "torch" or each == program]
    return any(
        layer.requested_activations is not None or layer.computed.startswith("int8") for layers in tables for layer in layers
    )


def judge(
    bundle: Bundle,
    runtime: str,
    runtime_version: str,
    evidence: Sequence[Evidence],
    floor: Floor,
    gate: Gate,
    *,
    threads: int | None = None,
    quantized: bool = False,
    emulated: bool = False,
    device: str = "host",
) -> ParityResult:
    """Compare evidence with the golden trajectories; nothing is run.

    Args:
        quantized: activations are on grids, so that the denoiser is held to the budget.
    """
    goldens = bundle.golden.trajectories
    pairs = list(zip(goldens, evidence, strict=True))

    def whole(value_db: float, floor_db: float) -> Figure:
        wanted = gate.budget_db if quantized and gate.fixed_db is None else gate.fixed_db
        if wanted is None:
            return Figure.against_floor(value_db, floor_db, gate.margin_db)
        return Figure.against_fixed(value_db, floor_db, 0.0 if quantized else gate.margin_db, wanted)

    def band(value_db: float, floor_db: float) -> Figure:
        if quantized:  # roundings that flip land in any band: the budget is for the whole
            return Figure(value_db=value_db, floor_db=floor_db, gate_db=None, outcome="passed")
        return Figure.against_floor(value_db, floor_db, gate.margin_db)

    def step(row: int) -> StepParity:
        predictions = [(golden.predictions[row], found.forced[row]) for golden, found in pairs]
        bands = [band_snr_db(*pair) for pair in predictions]
        return StepParity(
            row=row,
            timestep=float(bundle.plan.timestep[row]),
            forced=whole(min(snr_db(*pair) for pair in predictions), floor.steps[row]),
            bands={name: band(min(found[name] for found in bands), floor.bands[row][name]) for name in bands[0]},
            free_running_db=min(snr_db(golden.samples[row], found.free[row]) for golden, found in pairs),
        )

    def other(floor_db: float | None, values: list[float]) -> Figure | None:
        if floor_db is None or not values:
            return None
        return Figure.against_floor(min(values), floor_db, gate.margin_db)

    return ParityResult(
        bundle=bundle.path.name,
        bundle_digest=bundle.manifest.digest,
        runtime=runtime,
        runtime_version=runtime_version,
        device=device,
        reference=bundle.golden.header.reference,
        trajectories=len(goldens),
        threads=threads,
        precision=floor.precision,
        quantized=quantized,
        emulated=emulated,
        gate=gate,
        perturbations=floor.perturbations,
        steps=tuple(step(row) for row in range(len(bundle.plan))),
        final=_pictures(goldens, evidence),
        temporal=other(
            floor.temporal, [snr_db(golden.features, made) for golden, found in pairs if (made := found.features) is not None]
        ),
        decoder=other(
            floor.decoder,
            [
                snr_db(golden.image, found.image)
                for golden, found in pairs
                if golden.image is not None and found.image is not None
            ],
        ),
    )


def _pictures(goldens: Sequence[Trajectory], evidence: Sequence[Evidence]) -> Pictures:
    drawn = [pictures_of(golden, found) for golden, found in zip(goldens, evidence, strict=True)]
    similar = [ssim(*pair) for pair in drawn]
    return Pictures(
        snr_db=min(snr_db(golden.final, found.last) for golden, found in zip(goldens, evidence, strict=True)),
        psnr_db=min(psnr_db(*pair) for pair in drawn),
        ssim=min((value for value in similar if value is not None), default=None),
    )


def pictures_of(golden: Trajectory, evidence: Evidence) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The image that the reference drew and the one that a runtime drew from the same noise, (C, H, W) each."""
    if golden.image is None or evidence.drawn is None:
        return golden.final, evidence.last
    return golden.image, evidence.drawn
