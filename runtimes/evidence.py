"""Evidence: what a runtime made of a bundle's golden trajectories. It is gathered here, or written by a device and read back.

The same file whoever wrote it, so that a device without Python proves parity too: it writes evidence.safetensors, and `parity`
judges it.
"""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_sd.bundle import Bundle, Trajectory, trace
from edge_sd.diffusion.noise import NAME
from edge_sd.errors import EdgeSDError
from edge_sd.files import read_tensors, write_tensors
from edge_sd.runnable import Session
from edge_sd.runtimes._child import isolated
from edge_sd.runtimes._runtime import Runtime
from edge_sd.validation import Record

Observe = Callable[[int, int], None]


def _unobserved(done: int, total: int) -> None:
    """Nobody looks."""


class EvidenceHeader(Record):
    """Of which bundle it is, and what made it.

    Attributes:
        bundle_digest: the manifest's own digest.
        seed, noise: what the free-running trajectories start from, see `diffusion.noise`.
    """

    schema_version: Literal[1] = 1
    kind: Literal["evidence"] = "evidence"
    bundle_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    runtime: str
    runtime_version: str
    seed: int = Field(ge=0)
    noise: Literal["philox4x32-10/box-muller"] = NAME


@dataclass(frozen=True)
class Evidence:
    """What a runtime made of one golden trajectory of N steps; all float32.

    Attributes:
        forced: its prediction at each step, (N, C, H, W), given the reference's sample.
        free: x before each step, (N, C, H, W), when it follows its own predictions from the same noise.
        last: x after the last step of that, (C, H, W).
        features: the rows that its program `temporal` made, (N, F), where the bundle has one.
        image: what its decoder made of the reference's last sample, (3, H', W'), where the bundle has one.
        drawn: what its decoder made of `last`, likewise.
    """

    forced: NDArray[np.float32]
    free: NDArray[np.float32]
    last: NDArray[np.float32]
    features: NDArray[np.float32] | None = None
    image: NDArray[np.float32] | None = None
    drawn: NDArray[np.float32] | None = None


class Prover(ABC):
    """A runtime that follows a bundle's golden trajectories by itself: its own noise, its own loop."""

    @abstractmethod
    def prove(self, bundle: Bundle, threads: int | None, output: Path, observe: Observe = _unobserved) -> object:
        """Write evidence of all of the bundle's programs.

        Raises:
            EdgeSDError: it fails, or what a program puts out is not finite.
        """


def gather(
    bundle: Bundle,
    runtime: Runtime,
    threads: int | None = None,
    observe: Observe = _unobserved,
) -> tuple[Evidence, ...]:
    """Run all of a bundle's programs over its golden trajectories, native ones in a process of their own.

    Args:
        observe: called with (predictions made, predictions in all).

    Raises:
        EdgeSDError: a program does not load, or its process dies.
    """
    known = {contract.program for contract in bundle.manifest.contracts}
    goldens, labels = bundle.golden.trajectories, bundle.golden.header.labels
    if isinstance(runtime, Prover):
        with tempfile.TemporaryDirectory() as folder:
            runtime.prove(bundle, threads, Path(folder) / "evidence.safetensors", observe)
            return load_evidence(Path(folder) / "evidence.safetensors", bundle)[1]
    names = [*bundle.plan.header.programs, *(name for name in ("temporal", "decoder") if name in known)]
    session = isolated(runtime, bundle, threads, names)
    found = follow(bundle, session, observe)
    if "temporal" in names:
        session.select(names.index("temporal"))
        times = bundle.plan.timestep.astype(np.float32)[:, None]
        given: list[tuple[NDArray[np.int32], ...]] = [(np.array([label], dtype=np.int32),) for label in labels]
        given = given or [()] * len(goldens)
        rows = [np.concatenate([session(time, *label) for time in times]) for label in given]
        found = [replace(evidence, features=made) for evidence, made in zip(found, rows, strict=True)]
    if "decoder" in names:
        session.select(names.index("decoder"))
        found = [
            replace(evidence, image=session(golden.final[None])[0].copy(), drawn=session(evidence.last[None])[0].copy())
            for evidence, golden in zip(found, goldens, strict=True)
        ]
    return tuple(found)


def follow(bundle: Bundle, denoiser: Session, observe: Observe = _unobserved) -> list[Evidence]:
    """The denoiser's part of `gather`: every trajectory twice, fed the reference's samples and on its own."""
    plan, goldens, found = bundle.plan, bundle.golden.trajectories, []
    total = 2 * len(plan) * len(goldens)

    def forced(index: int, golden: Trajectory) -> NDArray[np.float32]:
        predictions = []
        for row in range(len(plan)):
            denoiser.select(int(plan.program[row]))
            predictions.append(denoiser(golden.samples[row : row + 1], golden.features[row : row + 1])[0].copy())
            observe((2 * index + 1) * len(plan) + row + 1, total)
        return np.stack(predictions)

    for index, golden in enumerate(goldens):
        with np.errstate(all="ignore"):  # what is not finite is judged, not warned of
            own = trace(plan, denoiser, bundle.golden.header.seed, index, golden.features)
        observe((2 * index + 1) * len(plan), total)
        found.append(Evidence(forced(index, golden), own.samples, own.final))
    return found


def header_of(bundle: Bundle, runtime: Runtime) -> EvidenceHeader:
    """What evidence of a runtime says of itself."""
    return EvidenceHeader(
        bundle_digest=bundle.manifest.digest,
        runtime=runtime.name,
        runtime_version=runtime.available().detail,
        seed=bundle.golden.header.seed,
    )


def save_evidence(path: Path, header: EvidenceHeader, evidence: tuple[Evidence, ...]) -> None:
    """Write evidence.safetensors: tensors `0.forced`, `0.free`, …, the header in the metadata."""
    tensors = {
        f"{index}.{field.name}": value
        for index, found in enumerate(evidence)
        for field in fields(Evidence)
        if (value := getattr(found, field.name)) is not None
    }
    write_tensors(path, tensors, header)


def load_evidence(path: Path, bundle: Bundle) -> tuple[EvidenceHeader, tuple[Evidence, ...]]:
    """Read evidence, and check that it is of this bundle.

    Raises:
        EdgeSDError: damaged, of another bundle or other noise, not finite, or with a tensor missing or of another shape.
    """
    header, tensors = read_tensors(EvidenceHeader, path)
    if header.bundle_digest != bundle.manifest.digest or header.seed != bundle.golden.header.seed:
        raise EdgeSDError(f"{path} is of another bundle than {bundle.path}", "run the device's part again, with this bundle")
    found = []
    for index, golden in enumerate(bundle.golden.trajectories):
        shapes = {"forced": golden.predictions.shape, "free": golden.samples.shape, "last": golden.final.shape}
        shapes["features"] = golden.features.shape
        if golden.image is not None:
            shapes |= {"image": golden.image.shape, "drawn": golden.image.shape}
        parts = {name: tensors.pop(f"{index}.{name}", None) for name in shapes}
        for name, value in parts.items():
            missing = value is None and name not in ("features", "image", "drawn")
            if missing or (value is not None and (value.shape != shapes[name] or value.dtype != np.float32)):
                is_there = "is missing" if value is None else f"is {value.dtype} {value.shape}"
                raise EdgeSDError(f"{path}: {index}.{name} {is_there}, expected float32 {shapes[name]}", "run the job again")
        found.append(Evidence(**parts))  # type: ignore[arg-type]
    if tensors:
        raise EdgeSDError(f"{path} holds tensors that are no evidence: {', '.join(sorted(tensors))}", "run the job again")
    return header, tuple(found)
