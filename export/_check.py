"""What can be known before an export: whether each target takes the programs, and what they will need."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from edge_sd.bundle.placement import MemoryForecast
from edge_sd.errors import EdgeSDError, InstallationError, UsageError, unknown
from edge_sd.export._target import Source, Target, TargetOptions
from edge_sd.export.memory import forecast
from edge_sd.registry import implementations
from edge_sd.validation import Record

_UNITS = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


class Check(Record):
    """One line of a dry run.

    Attributes:
        operators: ATen operators of its programs, most frequent first, and how many of each.
        memory: forecast of each program.
        problems: what stands against it; empty if nothing does.
    """

    target: str
    rewrites: tuple[str, ...]
    programs: tuple[str, ...]
    operators: dict[str, int]
    memory: dict[str, MemoryForecast]
    problems: tuple[str, ...]

    @property
    def peak_bytes(self) -> int:
        """Of the hungriest program; they run one after the other."""
        return max(memory.total_bytes for memory in self.memory.values())


def targets() -> dict[str, Target]:
    """Every target by name."""
    return implementations("edge_sd.export", Target)


def find_targets(names: Sequence[str]) -> list[Target]:
    """Find targets that work here; `all` stands for every one.

    Raises:
        UsageError: there is none of a name.
        InstallationError: its packages are missing.
    """
    known = targets()
    chosen = []
    for name in dict.fromkeys(known if "all" in names else names):
        if name not in known:
            raise unknown("target", name, known, "or all")
        available = known[name].available()
        if not available.ok:
            raise InstallationError(f"target {name}: {available.detail}", available.remedy)
        chosen.append(known[name])
    return chosen


def check_target(target: Target, sources: Sequence[Source], options: TargetOptions) -> Check:
    """Look at everything that can be seen without exporting."""
    found: dict[str, int] = {}
    for source in sources:
        for node in source.exported.graph.nodes:
            if node.op == "call_function" and str(node.target).startswith("aten."):
                name = str(node.target).split(".")[1]
                found[name] = found.get(name, 0) + 1
    return Check(
        target=target.name,
        rewrites=sources[0].rewrites,
        programs=tuple(source.name for source in sources),
        operators=dict(sorted(found.items(), key=lambda item: -item[1])),
        memory={source.name: forecast(source.exported, target.value_bytes(source.name, options)) for source in sources},
        problems=tuple(target.check(sources, options)),
    )


def refuse(checks: Sequence[Check], ram_budget: int | None) -> None:
    """Stop before anything long where a target refuses a program or the forecast exceeds the budget.

    Raises:
        UsageError: an option is wrong for a target, or an operator has no counterpart; all are named.
        EdgeSDError: a program will not fit.
    """
    problems = [f"{check.target}: {problem}" for check in checks for problem in check.problems]
    if problems:
        raise UsageError("; ".join(problems), "another --target, or other options: edge-sd export --help")
    for check in checks:
        if ram_budget is not None and check.peak_bytes > ram_budget:
            name, memory = max(check.memory.items(), key=lambda item: item[1].total_bytes)
            total, weights, activations, budget = (
                f"{size / 2**20:.4g} MiB"
                for size in (memory.total_bytes, memory.weights_bytes, memory.activations_bytes, ram_budget)
            )
            raise EdgeSDError(
                f"{check.target}: the {name} needs about {total} ({weights} of weights, {activations} of activations), "
                f"the budget is {budget}",
                "a slimmer model, fewer bits, or a larger --ram-budget",
            )


def refuse_full_disk(out: Path, needed: int) -> None:
    """Stop where the bundle will not fit on its disk.

    Raises:
        EdgeSDError: too little is free.
    """
    place = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise EdgeSDError(
            f"no room on the disk of {out}: the bundle needs about {needed / 2**20:.4g} MiB, {free / 2**20:.4g} MiB are free",
            "free some space, or choose another -o",
        )


def parse_size(text: str) -> int:
    """Read a size such as 512MiB or 2GB, in bytes.

    Raises:
        UsageError: it is not one.
    """
    stripped = text.strip().upper()
    for unit, factor in _UNITS.items():
        if stripped.endswith(unit):
            number = stripped[: -len(unit)].strip()
            try:
                value = float(number)
            except ValueError:
                break
            if 0 < value < 2**20:
                return int(value * factor)
    raise UsageError(f"{text!r} is not a size", "for instance 512MiB or 2GB")
