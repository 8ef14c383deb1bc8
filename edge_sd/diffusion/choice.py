"""How a person says which plan: by what it is compiled from, or by a file that holds one."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge_sd.diffusion.plan import Plan, Prediction, load_plan, refuse_other_process
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.diffusion.solvers import compile_plan
from edge_sd.validation import Record

if TYPE_CHECKING:
    from edge_sd.checkpoint import Provenance

DEFAULT_SOLVER, DEFAULT_STEPS = "dpmpp", 20


class PlanChoice(Record):
    """What a plan is compiled from."""

    solver: str = DEFAULT_SOLVER
    steps: int = DEFAULT_STEPS
    spacing: str | None = None
    eta: float = 0.0

    def plan(self, schedule: NoiseSchedule, prediction: Prediction, weights: Collection[str] = ()) -> Plan:
        """Compile it for a model.

        Raises:
            UsageError: an unknown name, or a number out of range.
        """
        return compile_plan(schedule, prediction=prediction, **self.model_dump())


class PlanFile(Record):
    """A plan that was made before: by `edge-sd plan`, by a search, or out of a bundle."""

    path: Path

    def plan(self, schedule: NoiseSchedule, prediction: Prediction, weights: Collection[str] = ()) -> Plan:
        """Read it for a model; see `Plan.bare`.

        Args:
            weights: the model's `lineage`.

        Raises:
            EdgeSDError: no plan, or one that `refuse_other_process` refuses.
        """
        found = load_plan(self.path)
        refuse_other_process(found, schedule, prediction, self.path, weights)
        return found.bare()


PlanSource = PlanChoice | PlanFile


class Trained(Protocol):
    """What is read of the header of a checkpoint, quantized or not."""

    @property
    def digest(self) -> str:
        """Of the weights."""

    @property
    def provenance(self) -> "Provenance":
        """Where they come from."""


def lineage(header: Trained) -> tuple[str, ...]:
    """Digests of a model's weights, and of those that it was quantized or rounded from: what is tuned for these suits it too."""
    parents = header.provenance.parents
    return (header.digest, *(parents[role] for role in ("float", "float32") if role in parents))
