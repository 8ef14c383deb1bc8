"""Stages that are done once: a record beside the results says from which settings and inputs they came.

A stage is skipped when its settings, the hashes of its inputs and the hashes of what it wrote are those of its record.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import edge_sd
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import fingerprint, read_model, sha256, write_model
from edge_sd.validation import Record


class StageRecord(Record):
    """stages/NAME.json."""

    schema_version: Literal[1] = 1
    kind: Literal["stage"] = "stage"
    key: str
    seconds: float
    outputs: dict[str, str]


def refuse_many_processes() -> None:
    """Of processes that were launched together each would do every stage.

    Raises:
        UsageError: there are others.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "a run is one process", "launch train and distill over many; a run takes what they made as teacher: {checkpoint: …}"
        )


class Stages:
    """The stages of one run folder.

    Attributes:
        observe: called with (stage, "running" or "done before").
    """

    def __init__(self, folder: Path, observe: Callable[[str, str], None]) -> None:
        self.folder, self.observe = folder, observe
        self.seconds: dict[str, float] = {}

    def run(
        self, name: str, settings: Mapping[str, Any], inputs: Mapping[str, str], outputs: list[Path], action: Callable[[], object]
    ) -> None:
        """Do a stage, or find it done.

        Args:
            inputs: the hash of everything it reads.
            outputs: files or bundles that `action` writes.
        """
        if self.done(name, settings, inputs, outputs):
            return
        self.observe(name, "running")
        began = time.monotonic()
        action()
        self.keep(name, settings, inputs, outputs, time.monotonic() - began)

    def done(self, name: str, settings: Mapping[str, Any], inputs: Mapping[str, str], outputs: list[Path]) -> bool:
        """Whether a stage was done before; `observe` hears of it."""
        record = self._record(self._file(name))
        if record is None or record.key != _key(settings, inputs) or record.outputs != self._hashes(outputs):
            return False
        self.observe(name, "done before")
        self.seconds[name] = record.seconds
        return True

    def keep(
        self, name: str, settings: Mapping[str, Any], inputs: Mapping[str, str], outputs: list[Path], seconds: float
    ) -> None:
        """Write down that a stage is done."""
        self.seconds[name] = seconds
        write_model(self._file(name), StageRecord(key=_key(settings, inputs), seconds=seconds, outputs=self._hashes(outputs)))

    def _file(self, name: str) -> Path:
        return self.folder / "stages" / f"{name}.json"

    def _record(self, file: Path) -> StageRecord | None:
        try:
            return read_model(StageRecord, file)
        except EdgeSDError:  # never done, or by another version: do it again
            return None

    def _hashes(self, outputs: list[Path]) -> dict[str, str]:
        return {str(path.relative_to(self.folder)): hash_of(path) for path in outputs}


def _key(settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    return fingerprint({"version": edge_sd.__version__, "settings": settings, "inputs": inputs})


def hash_of(path: Path) -> str:
    """SHA-256 of a file, or over all files of a bundle; empty where there is none."""
    if path.is_dir():
        return fingerprint({str(file.relative_to(path)): sha256(file) for file in path.rglob("*") if file.is_file()})
    return sha256(path) if path.is_file() else ""
