"""How a person says which plan: by what it is compiled from, or by a file that holds one."""

from pathlib import Path

from edge_sd.diffusion.plan import Plan, Prediction, load_plan, refuse_other_process
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.diffusion.solvers import compile_plan
from edge_sd.validation import Record

DEFAULT_SOLVER, DEFAULT_STEPS = "dpmpp", 20


class PlanChoice(Record):
    """What a plan is compiled from."""

    solver: str = DEFAULT_SOLVER
    steps: int = DEFAULT_STEPS
    spacing: str | None = None
    eta: float = 0.0

    def plan(self, schedule: NoiseSchedule, prediction: Prediction) -> Plan:
        """Compile it for a model.

        Raises:
            UsageError: an unknown name, or a number out of range.
        """
        return compile_plan(schedule, prediction=prediction, **self.model_dump())


class PlanFile(Record):
    """A plan that was made before: by `edge-sd plan`, by a search, or out of a bundle."""

    path: Path

    def plan(self, schedule: NoiseSchedule, prediction: Prediction) -> Plan:
        """Read it for a model; see `Plan.bare`.

        Raises:
            EdgeSDError: no plan, or one for another schedule or prediction than the model's.
        """
        found = load_plan(self.path)
        refuse_other_process(found, schedule, prediction, self.path)
        return found.bare()


PlanSource = PlanChoice | PlanFile
