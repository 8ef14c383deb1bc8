"""What a plan is good for, as one number with its error; lower is better. A new objective is a new file in this folder."""

from edge_sd.errors import unknown
from edge_sd.registry import classes
from edge_sd.search.objectives._base import Objective as Objective
from edge_sd.search.objectives._base import Score as Score


def objectives() -> dict[str, type[Objective]]:
    """Every objective by name."""
    return classes(__name__, Objective)


def find_objective(name: str) -> type[Objective]:
    """An objective by its name.

    Raises:
        UsageError: there is none of that name.
    """
    known = objectives()
    if name not in known:
        raise unknown("objective", name, sorted(known))
    return known[name]
