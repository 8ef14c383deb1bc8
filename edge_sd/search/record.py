"""What a search writes: trials as they come, line by line, and at its end a record of what it was, tried and found."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Literal

from pydantic import Field

from edge_sd.diffusion.unified import SolverSchedule
from edge_sd.errors import UsageError
from edge_sd.files import explained, parse_model, write_bytes
from edge_sd.validation import Model, Record

SEARCH, TRIALS, FINALS = "search.json", "trials.jsonl", "finals.jsonl"
PLAN, SCHEDULE, FRONT = "plan.safetensors", "schedule.json", "front.png"
COMPARED, COMPARED_PICTURE = "compare.json", "compare.png"


def folder_of(folder: Path, steps: int) -> Path:
    """Where a search for so many steps lies."""
    return folder / f"steps-{steps}"


class SearchSettings(Record):
    """What a search's trials depend on; a folder holds those of one.

    Attributes:
        steps: function evaluations.
        objective: its name, and in `details` what else decides its values: steps of the fine-grained trajectory; features and
            real images by their digests.
        samples: drawn for each plan.
        seed: of their noise and of everything random.
        model, model_name: SHA-256 of the weights; the file, for a person.
        labels: which classes are drawn, for a person.
    """

    steps: int = Field(ge=1)
    objective: str
    details: dict[str, str | int] = Field(default_factory=dict)
    samples: int = Field(ge=2)
    seed: int = Field(default=0, ge=0, lt=2**62)
    model: str
    model_name: str = ""
    labels: str = ""


class Trial(Record):
    """One plan, scored.

    Attributes:
        number: from 0, in the order in which they were proposed.
        generation: 0 for the known solvers.
        origin: of a known one, its solver and spacing.
        predicted: what the predictor said of it, in its own units; None where there was none.
        value, standard_error: on the search's noise.
    """

    number: int = Field(ge=0)
    generation: int = Field(ge=0)
    origin: str = ""
    schedule: SolverSchedule
    predicted: float | None = None
    value: float = Field(allow_inf_nan=False)
    standard_error: float = Field(allow_inf_nan=False)


class Final(Record):
    """A plan scored on fresh noise.

    Attributes:
        seed, samples: of that noise.
        deviations: see `Score`.
    """

    trial: int
    seed: int
    samples: int
    value: float = Field(allow_inf_nan=False)
    standard_error: float = Field(allow_inf_nan=False)
    deviations: tuple[float, ...]


class Known(Record):
    """A known solver at its best spacing, on the search's noise."""

    solver: str
    spacing: str
    trial: int
    value: float
    standard_error: float


class Generation(Record):
    """One generation.

    Attributes:
        trials: how many.
        best: of all trials until then.
        correlation: of ranks, between what the predictor said of these trials and what they came to; None without predictions.
    """

    trials: int
    best: float
    correlation: float | None = None


class Finalist(Record):
    """One of the best plans of a search, or the best known one, on the search's noise and on fresh noise.

    Attributes:
        searched: its value on the search's noise.
        value, standard_error: on fresh noise.
        gain, gain_error: how far it lies below the best known one there, with the error of that difference on equal noise.
    """

    trial: int
    origin: str
    searched: float
    value: float
    standard_error: float
    gain: float
    gain_error: float


class SearchRecord(Record):
    """search.json.

    Attributes:
        about: what the objective measures.
        fresh_seed, fresh_samples: of the noise on which finalists are ranked.
        evaluations: trials in all.
        complete: as many as were asked for; a search that its minutes ended can go on.
        known: one a solver, best first.
        generations: the known solvers' first.
        finalists: best first.
        chosen: trial of the plan that is the result.
        best_known: trial of the best known solver's.
        seconds: of the last run.
    """

    schema_version: Literal[1] = 1
    kind: Literal["search"] = "search"
    settings: SearchSettings
    about: str
    fresh_seed: int
    fresh_samples: int
    evaluations: int
    complete: bool
    known: tuple[Known, ...]
    generations: tuple[Generation, ...]
    finalists: tuple[Finalist, ...]
    chosen: int
    best_known: int
    seconds: float = 0.0
    versions: dict[str, str] = Field(default_factory=dict)

    def finalist(self, trial: int) -> Finalist:
        """Find a finalist by its trial."""
        return next(one for one in self.finalists if one.trial == trial)


class Lines(Generic[Model]):
    """A file of records, one a line, appended as they come: a kill cuts the last line at worst, and that is dropped.

    The first line says what the others belong to.

    Args:
        owner: its first line; a file with another one is refused.
    """

    def __init__(self, path: Path, kind: type[Model], owner: Record) -> None:
        self.path, self.kind, self.owner = path, kind, owner

    def read(self) -> list[Model]:
        """All whole lines.

        Raises:
            EdgeSDError: a line that is whole is not what it should be; it says which.
            UsageError: it belongs to something else; it says in what they differ.
        """
        if not self.path.is_file():
            return []
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            write_bytes(self.path, whole)
        first, *lines = whole.splitlines() or [b""]
        if not first:
            return []
        owner = parse_model(type(self.owner), first, f"{self.path}, line 1")
        if owner != self.owner:
            raise UsageError(
                f"{self.path.parent} holds another search: {_differences(owner, self.owner)}", "another -o, or --overwrite"
            )
        return [parse_model(self.kind, line, f"{self.path}, line {n}") for n, line in enumerate(lines, 2)]

    @contextmanager
    def appending(self) -> "Iterator[Appender[Model]]":
        """Open it at its end; made with its first line where it is not there."""
        with explained(self.path):
            if not self.path.is_file() or not self.path.stat().st_size:
                write_bytes(self.path, self.owner.model_dump_json().encode() + b"\n")
            with self.path.open("ab") as file:
                yield Appender(file.fileno())


class Appender(Generic[Model]):
    """A file of records, open at its end."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __call__(self, record: Model) -> None:
        """Append one, and see that it is on the disk."""
        data = record.model_dump_json(exclude_defaults=True).encode() + b"\n"
        while data:
            data = data[os.write(self.descriptor, data) :]
        os.fsync(self.descriptor)


def _differences(found: Record, given: Record) -> str:
    """Settings that differ: "steps is 5 there and 10 here"."""
    there, here = json.loads(found.model_dump_json()), json.loads(given.model_dump_json())
    there |= there.pop("details", {})
    here |= here.pop("details", {})
    differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return ", ".join(f"{name} is {there.get(name)!r} there and {here.get(name)!r} here" for name in differing)
