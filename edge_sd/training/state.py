"""The state of an unfinished run: one safetensors file that is replaced as a whole, and a log that is cut back to it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from edge_sd.errors import EdgeSDError
from edge_sd.files import read_tensors, tensors_digest, write_tensors, write_text
from edge_sd.validation import Record


class Layout(Record):
    """How a batch is divided; decides what is learnt where `forward` draws random numbers."""

    processes: int = Field(ge=1)
    slices: int = Field(ge=1)
    compiled: bool

    def __str__(self) -> str:
        return f"processes {self.processes}, slices {self.slices}, {'compiled' if self.compiled else 'not compiled'}"


class StateHeader(Record):
    """Which run a state belongs to and how far it had come."""

    schema_version: Literal[1] = 1
    kind: Literal["training-state"] = "training-state"
    step: int = Field(ge=0)  # steps done
    settings: dict[str, Any]
    digest: str
    layout: Layout | None = None  # None: written before layouts were recorded


@dataclass(frozen=True)
class State:
    """An unfinished run, in full tensors.

    Attributes:
        step: steps done.
        learner, average: names of a state_dict → tensors.
        moments: what the optimizer remembers, as `average.moments` names it.
    """

    step: int
    learner: dict[str, Tensor]
    average: dict[str, Tensor]
    moments: dict[str, Tensor]


_GROUPS = {"learner": "learner", "ema": "average", "optimizer": "moments"}  # in the file → here


def save_state(path: Path, state: State, settings: dict[str, Any], layout: Layout) -> None:
    """Write everything the next step depends on, atomically. Random numbers need no place: they are functions of the step."""
    arrays = {
        f"{group}.{name}": value.detach().cpu().numpy()
        for group, field in _GROUPS.items()
        for name, value in getattr(state, field).items()
    }
    write_tensors(path, arrays, StateHeader(step=state.step, settings=settings, digest=tensors_digest(arrays), layout=layout))


def load_state(path: Path, settings: dict[str, Any], layout: Layout, *, random: bool) -> State:
    """Read a state again.

    Raises:
        EdgeSDError: the file is damaged, or of a run with other settings (the first that differs is named), or, where what is
            learnt depends on `random` numbers, with another layout.
    """
    header, arrays = read_tensors(StateHeader, path)
    if tensors_digest(arrays) != header.digest:
        raise EdgeSDError(f"{path} has changed since it was written", "start afresh with --overwrite")
    check_settings(path, header.settings, settings)
    if random and header.layout not in (None, layout):
        raise EdgeSDError(
            f"{path.parent} holds a run with other random numbers: each process and slice has its own dropout, and the run's "
            f"were {header.layout}; now {layout}",
            "go on with as many processes and slices as before, or give --overwrite to start afresh",
        )
    groups: dict[str, dict[str, Tensor]] = {field: {} for field in _GROUPS.values()}
    for name, value in arrays.items():
        group, _, rest = name.partition(".")
        groups[_GROUPS[group]][rest] = torch.from_numpy(value)
    return State(header.step, **groups)


def check_settings(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a run that was begun with other settings."""
    flat_before, flat_now = _flat(json.loads(json.dumps(before))), _flat(json.loads(json.dumps(now)))
    changed = [key for key in sorted(flat_before.keys() | flat_now.keys()) if flat_before.get(key) != flat_now.get(key)]
    if changed:
        key = changed[0]
        raise EdgeSDError(
            f"{path.parent} holds a run with other settings: {key} was {flat_before.get(key)}, now {flat_now.get(key)}",
            "go on with the old settings, choose another -o, or give --overwrite to start afresh",
        )


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read metrics.jsonl, one record a line; a last line that a kill cut short is left out."""
    records: list[dict[str, float]] = []
    lines = path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines) - 1:
                raise EdgeSDError(f"{path}, line {number + 1}, is not JSON", "start afresh with --overwrite") from error
    return records


def cut_metrics(path: Path, step: int) -> None:
    """Drop what was logged after `step`: those steps will be done again."""
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return value if np.isfinite(value) else None
