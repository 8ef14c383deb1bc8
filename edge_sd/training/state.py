"""The state of an unfinished run: one safetensors file that is replaced as a whole, and a log that is cut back to it."""

import copy
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from edge_sd.errors import EdgeSDError
from edge_sd.files import read_tensors, tensors_digest, write_tensors, write_text
from edge_sd.validation import Record


class StateHeader(Record):
    """Which run a state belongs to and how far it had come."""

    schema_version: Literal[1] = 1
    kind: Literal["training-state"] = "training-state"
    step: int = Field(ge=0)  # steps done
    settings: dict[str, Any]
    digest: str


def save_state(
    path: Path, step: int, settings: dict[str, Any], learner: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write everything the next step depends on, atomically. Random numbers need no place: they are functions of the step."""
    tensors = {f"learner.{name}": value for name, value in learner.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in ema.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    arrays = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
    write_tensors(path, arrays, StateHeader(step=step, settings=settings, digest=tensors_digest(arrays)))


def load_state(path: Path, settings: dict[str, Any], learner: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put a state back and return the number of steps done.

    Raises:
        EdgeSDError: the file is damaged, or of a run with other settings; the first that differs is named.
    """
    header, arrays = read_tensors(StateHeader, path)
    if tensors_digest(arrays) != header.digest:
        raise EdgeSDError(f"{path} has changed since it was written", "start afresh with --overwrite")
    check_settings(path, header.settings, settings)
    groups: dict[str, dict[str, torch.Tensor]] = {"learner": {}, "ema": {}, "optimizer": {}}
    for name, value in arrays.items():
        group, _, rest = name.partition(".")
        groups[group][rest] = torch.from_numpy(value)
    learner.load_state_dict(groups["learner"])
    ema.load_state_dict(groups["ema"])
    state = copy.copy(optimizer.state_dict())
    state["state"] = {}
    for name, tensor in groups["optimizer"].items():
        index, _, moment = name.partition(".")
        state["state"].setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict(state)
    return header.step


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
