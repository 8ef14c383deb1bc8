"""Where does a program diverge? The first module of the model whose output the program does not compute.

Converters rename, fold and turn over what they convert, so names say little. Numbers do: the output of every module of the
reference is looked for among all values that the program computes in the same call, in any layout. Up to the fault they are
there, from it on they are not. A value that a converter fused away is missing between others that are there, and not mistaken
for it.

First the reference is compared with its own rewritten form, from which the program was made: a fault there is one of a rewrite.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Bundle
from edge_sd.bundle.manifest import REFERENCE
from edge_sd.errors import EdgeSDError
from edge_sd.evaluation.metrics import snr_db
from edge_sd.runtimes._matching import best_match
from edge_sd.runtimes.floor import last_bit
from edge_sd.runtimes.parity import MARGIN_DB, ParityResult
from edge_sd.runtimes.values import values
from edge_sd.validation import Record

# A value that went through no arithmetic has no floor; and no kernel is asked to be better than this.
_BEST_GATE_DB = 100.0


class Module(Record):
    """A module of the reference, and how well the program computes its output.

    Attributes:
        value: what the program calls the value that comes nearest.
        gate_db: a margin below what its own rounding does to it.
    """

    name: str
    kind: str
    value: str
    found_db: float
    gate_db: float

    @property
    def agrees(self) -> bool:
        """Whether the program computes it."""
        return self.found_db >= self.gate_db


class Location(Record):
    """Where a program of a runtime's target diverges, at the step where it shows most.

    Attributes:
        where: "rewrite", "program" or "runtime"; empty: nothing diverges.
        looked_at: what the values are of.
        module: the first that diverges; None where all modules agree.
        after: the last that agrees before it.
        modules: all, in the order in which they finish.
        note: what the figures cannot say.
    """

    runtime: str
    row: int
    where: str
    looked_at: str
    module: Module | None
    after: str | None
    modules: tuple[Module, ...]
    note: str = ""

    @property
    def verdict(self) -> str:
        """One sentence."""
        note = f"; {self.note}" if self.note else ""
        if self.module is None:
            return f"{self.runtime}: every module agrees at step {self.row} ({self.looked_at}){note}"
        found = self.module
        after = f"after {self.after}" if self.after else "the first module"
        return (
            f"{self.runtime}: diverges first in {found.name} ({found.kind}), {after}: {found.found_db:.1f} dB, where rounding "
            f"leaves {found.gate_db:.1f} dB or more; step {self.row}, {self.looked_at}{note}"
        )


def locate(bundle: Bundle, target: str, result: ParityResult) -> Location:
    """Find the first module that diverges, at the worst step of a parity result.

    Args:
        target: of the runtime that the result is of.

    Raises:
        EdgeSDError: the target's programs cannot be looked into, or do not load.
    """
    ways = values()
    if target not in ways:
        raise EdgeSDError(f"programs of {target} cannot be looked into", f"--runtime of one of {', '.join(sorted(ways))}")
    row, golden = result.worst_step.row, bundle.golden.trajectories[0]
    inputs = [np.ascontiguousarray(value[row : row + 1]) for value in (golden.samples, golden.features)]
    program = bundle.plan.header.programs[int(bundle.plan.program[row])]
    half = result.precision == "fp16" and not result.quantized  # the integers of a quantized one take no other dtype
    plain, rewritten, gates = _reference(bundle, target, program, inputs, half=half)
    common = [name for name in plain if name in rewritten]
    changed = tuple(
        Module(
            name=name,
            kind=plain[name][0],
            value=name,
            found_db=snr_db(plain[name][1], rewritten[name][1]),
            gate_db=gates[name],
        )
        for name in common
        if plain[name][1].shape == rewritten[name][1].shape
    )
    in_rewrite = _location(result, row, "rewrite", "the reference against its rewritten form", changed)
    if in_rewrite.module is not None:
        return in_rewrite
    computed = dict(ways[target].of(bundle, program, inputs))
    modules = tuple(
        Module(name=name, kind=kind, value=found, found_db=db, gate_db=gates[name])
        for name, (kind, value) in rewritten.items()
        for db, found in [best_match(value, computed)]
    )
    reproduced, _ = best_match(golden.predictions[row], computed)
    note = ""
    if reproduced > result.worst_step.forced.value_db + MARGIN_DB:
        why = "in the runtime's own kernels or fusions, or in a file that was changed after its export"
        if result.quantized:
            why = "in how the runtime's integer kernels round"
        note = (
            f"this predicts {reproduced:.1f} dB, the runtime {result.worst_step.forced.value_db:.1f} dB: the difference is {why}"
        )
    return _location(result, row, "program", ways[target].about, modules, note)


def _location(
    result: ParityResult, row: int, where: str, looked_at: str, modules: tuple[Module, ...], note: str = ""
) -> Location:
    split = first_divergence([module.agrees for module in modules])
    found = modules[split] if split < len(modules) else None
    before = [module.name for module in modules[:split] if module.agrees]
    return Location(
        runtime=result.runtime,
        row=row,
        where=where if found else "runtime" if note else "",
        looked_at=looked_at,
        module=found,
        after=before[-1] if found and before else None,
        modules=modules,
        note=note,
    )


def first_divergence(agrees: Sequence[bool]) -> int:
    """Index of the first of a sequence from which on nothing agrees, as far as that can be said; its length if all agrees.

    Single values may be missing before (fused away) and agree after (not on the faulty path): the split with the fewest such
    exceptions is taken, the earliest of equals.
    """
    before, after = 0, sum(agrees)
    best, split = after, 0
    for index, agreed in enumerate(agrees):
        before, after = before + (not agreed), after - agreed
        if before + after < best:
            best, split = before + after, index + 1
    while split < len(agrees) and agrees[split]:
        split += 1
    return split


def _reference(
    bundle: Bundle, target: str, program: str, inputs: Sequence[NDArray[np.float32]], *, half: bool
) -> tuple[dict[str, tuple[str, np.ndarray]], dict[str, tuple[str, np.ndarray]], dict[str, float]]:
    """Outputs of the reference's modules and of its rewritten form's, each with the module's class, and every module's gate."""
    import torch

    from edge_sd.export import DenoiserProgram
    from edge_sd.models.observe import observed
    from edge_sd.models.rewrites import rewritten
    from edge_sd.models.slim import network_of
    from edge_sd.models.stepped import select
    from edge_sd.quantize.checkpoint import load_any

    def outputs(module: torch.nn.Module, sample: NDArray[np.float32], dtype: torch.dtype) -> dict[str, tuple[str, np.ndarray]]:
        module.to(dtype)
        tensors = [torch.from_numpy(value).to(dtype) for value in (sample, inputs[1])]
        with torch.no_grad(), observed(module) as found:
            module(*tensors)
        kinds = {name: type(part).__name__ for name, part in module.named_modules()}
        return {name.removeprefix("model."): (kinds[name], value.float().numpy()) for name, value in found.items()}

    model = load_any(bundle.path / REFERENCE).build(bundle.plan.header.widths)
    number = int(program.partition(".")[2] or 0)
    whole = DenoiserProgram(network_of(model, number))
    select(whole, number)
    turned = rewritten(whole, bundle.program(target, program).rewrites)
    plain, exact = (outputs(module, inputs[0], torch.float32) for module in (whole, turned))
    perturbed = [outputs(turned, last_bit(inputs[0]), torch.float32)]
    if half:
        perturbed.append(outputs(turned, inputs[0], torch.float16))
    gates = {
        name: min(_BEST_GATE_DB, *(snr_db(value, other[name][1]) - MARGIN_DB for other in perturbed if name in other))
        for name, (_, value) in exact.items()
    }
    return plain, exact, gates
