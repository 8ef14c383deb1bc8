"""Drawing the samples of an evaluation: from anything that can draw sample i of a seed, in as many processes as are wanted.

Sample i depends on (seed, i) alone and batches are cut in the same places whatever the number of processes, so that more of
them change the time and not the samples. (Other numbers of threads can change a sum's order, and with it the last bit.)
"""

import multiprocessing
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from edge_sd.diffusion.choice import PlanChoice as PlanChoice
from edge_sd.diffusion.choice import PlanSource, lineage
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation.record import Origin
from edge_sd.evaluation.reference import check_pixels, rgb_pixels
from edge_sd.files import read_tensors, write_tensors
from edge_sd.models.config import ModelConfig, check_label
from edge_sd.validation import Record

if TYPE_CHECKING:
    from edge_sd.checkpoint import CheckpointHeader
    from edge_sd.diffusion.plan import Plan
    from edge_sd.foreign import Foreign

Pixels = NDArray[np.uint8]
Draw = Callable[[range], Pixels]


class Drawer(ABC):
    """Something that draws samples. It travels to other processes, so it holds paths and settings, and no weights."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Height and width of an image."""

    @property
    @abstractmethod
    def origin(self) -> Origin:
        """Where the samples come from."""

    @abstractmethod
    def open(self, threads: int | None) -> Draw:
        """Load everything; the function returned maps indices to images (len(indices), 3, size, size) uint8."""


def draw(
    drawer: Drawer,
    count: int,
    *,
    processes: int = 1,
    threads: int | None = None,
    batch_size: int = 32,
    observe: Callable[[int, int], None] = lambda done, total: None,
) -> Pixels:
    """Draw samples 0 … count − 1, (count, 3, H, W) uint8.

    Args:
        processes: 1 draws in this one. More are started afresh (spawned): a script that calls this guards its own start with
            `if __name__ == "__main__"`.
        threads: of each process; the cores divided by the processes if left out.
        observe: called with (samples done, samples in all).

    Raises:
        EdgeSDError: what the drawer raises, in whichever process; or a process died.
    """
    if count < 1 or processes < 1:
        raise UsageError(f"{count} samples cannot be drawn in {processes} processes", "give at least one of each")
    blocks = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    processes = 1 if isinstance(drawer, GivenSamples) else min(processes, len(blocks))
    if processes > 1:
        return _draw_apart(drawer, blocks, processes, threads or max(1, cores() // processes), observe)
    one, found = drawer.open(threads), []
    for block in blocks:
        found.append(one(block))
        observe(block.stop, count)
    return np.concatenate(found)


def cores() -> int:
    """How many this process may run on. More threads than that would wait for each other, a hundred times slower."""
    allowed = getattr(os, "sched_getaffinity", None)  # not on macOS or Windows
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _draw_apart(drawer: Drawer, blocks: list[range], processes: int, threads: int, observe: Callable[[int, int], None]) -> Pixels:
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))  # torch does not survive a fork
    done, found = 0, [np.empty(0, np.uint8)] * len(blocks)
    try:
        waiting: dict[Future[Pixels], int] = {
            pool.submit(_in_worker, drawer, threads, block): number for number, block in enumerate(blocks)
        }
        for future in as_completed(waiting):
            found[waiting[future]] = future.result()
            done += len(blocks[waiting[future]])
            observe(done, blocks[-1].stop)
    except BrokenProcessPool as error:
        raise EdgeSDError(
            f"one of the {processes} processes that draw samples died after {done} of {blocks[-1].stop}; out of memory?",
            "give fewer --processes or a smaller --batch-size",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return np.concatenate(found)


# What this process has opened: a worker loads the model with its first batch, so that an error of loading travels as it is.
_opened: dict[Drawer, Draw] = {}


def _in_worker(drawer: Drawer, threads: int, block: range) -> Pixels:
    if drawer not in _opened:
        _opened[drawer] = drawer.open(threads)
    return _opened[drawer](block)


# Classes


def labels_of(config: ModelConfig, label: int | None) -> tuple[tuple[int, ...], str]:
    """The classes that are drawn in turn, sample i of class i mod their number, and how to say so.

    Raises:
        UsageError: an unknown class, or one that is not wanted.
    """
    if config.num_classes is None or label is not None:
        check_label(config, label)
        return ((), "") if label is None else ((label,), f"class {label}")
    check_label(config, 0)
    return tuple(range(config.num_classes)), f"{config.num_classes} classes in turn"


# From a checkpoint


@dataclass(frozen=True)
class CheckpointDrawer(Drawer):
    """Samples of a checkpoint, or of what `edge_sd.foreign.open_model` reads, in torch; decoded, where it makes latents.

    Attributes:
        plan: what it is compiled from, or the file that holds it.
        label: class of all of them; None takes all classes in turn, where the model knows any.
    """

    path: Path
    plan: PlanSource = field(default_factory=PlanChoice)
    seed: int = 0
    label: int | None = None

    @property
    def size(self) -> int:
        from edge_sd.decoder import image_shape

        model = self._model()
        shape = model.checkpoint.header.model.sample_shape
        return (shape if model.decoder is None else image_shape(model.decoder, shape))[-1]

    @property
    def origin(self) -> Origin:
        header = self._model().checkpoint.header
        plan = self._compile(header)
        labels = labels_of(header.model, self.label)[1]
        return origin_of("checkpoint", self.path, header.digest, "torch", plan, self.seed, labels)

    def open(self, threads: int | None) -> Draw:
        import torch

        from edge_sd.diffusion import execute, gaussian_batch
        from edge_sd.models.stepped import select
        from edge_sd.sampling import plan_features, ready_to_draw

        if threads is not None:
            torch.set_num_threads(threads)
        found = self._model()
        plan = self._compile(found.checkpoint.header)
        model = ready_to_draw(found.checkpoint.build(plan.header.widths))
        device = next(model.parameters()).device
        decoder = None if found.decoder is None else found.decoder.build().to(device)
        labels, _ = labels_of(model.config, self.label)
        # (classes, N, F): the rows of time features, one block a class.
        rows = torch.from_numpy(np.stack([plan_features(model, plan, label) for label in labels or (None,)])).to(device)

        def draw_block(indices: range) -> Pixels:
            kinds = torch.tensor(indices, device=device) % len(rows)

            def noise(row: int) -> torch.Tensor:
                return torch.from_numpy(gaussian_batch(self.seed, indices, row, model.config.sample_shape)).to(device)

            def program(x: torch.Tensor, row: int) -> torch.Tensor:
                select(model, int(plan.program[row]))
                return model.denoise(x, rows[kinds, row])

            with torch.no_grad():
                samples = execute(plan, program, noise(-1), noise)
                if decoder is not None:  # an image is much larger than its latent: one at a time
                    samples = torch.cat([decoder(sample) for sample in samples.split(1)])
            return rgb_pixels(samples.float().cpu().numpy())

        return draw_block

    def _model(self) -> "Foreign":
        from edge_sd.foreign import open_model

        model = open_model(self.path)
        header = model.checkpoint.header
        if model.decoder is None and ("autoencoder" in header.provenance.parents or header.model.in_channels not in (1, 3)):
            raise EdgeSDError(
                f"{self.path} denoises latents of {header.model.in_channels} channels, and no decoder is beside it",
                "put decoder.safetensors there; figures are of images",
            )
        return model

    def _compile(self, header: "CheckpointHeader") -> "Plan":
        return self.plan.plan(header.noise_schedule, header.prediction, lineage(header))


def origin_of(
    kind: Literal["checkpoint", "bundle"], path: Path, digest: str, runtime: str, plan: "Plan", seed: int, labels: str
) -> Origin:
    """`Origin` of samples that a plan draws."""
    return Origin(
        kind=kind,
        name=path.name,
        digest=digest,
        runtime=runtime,
        solver=plan.header.solver,
        spacing=plan.header.spacing,
        stochastic=plan.stochastic,
        steps=plan.header.steps,
        nfe=len(plan),
        seed=seed,
        labels=labels,
    )


# Samples that are there


@dataclass(frozen=True)
class GivenSamples(Drawer):
    """Samples (N, 3, H, W) uint8 that were drawn before; the first of them are taken."""

    pixels: Pixels
    given: Origin

    @property
    def size(self) -> int:
        return int(self.pixels.shape[-1])

    @property
    def origin(self) -> Origin:
        return self.given

    def open(self, threads: int | None) -> Draw:
        def take(indices: range) -> Pixels:
            if indices.stop > len(self.pixels):
                raise UsageError(
                    f"there are {len(self.pixels)} samples, not more", f"give -n {len(self.pixels)} or less, or draw more"
                )
            return self.pixels[indices.start : indices.stop]

        return take


class SamplesHeader(Record):
    """The metadata of a file of samples."""

    schema_version: Literal[1] = 1
    kind: Literal["images"] = "images"
    origin: Origin


def save_samples(path: Path, pixels: Pixels, origin: Origin) -> None:
    """Write samples (n, 3, H, W) uint8 with their origin, so that they need not be drawn again."""
    write_tensors(path, {"pixels": pixels}, SamplesHeader(origin=origin))


def load_samples(path: Path) -> tuple[Pixels, Origin]:
    """Read what `save_samples` wrote.

    Raises:
        EdgeSDError: missing, damaged or something else.
    """
    header, tensors = read_tensors(SamplesHeader, path)
    if tensors.keys() != {"pixels"}:
        raise EdgeSDError(f"{path} holds {', '.join(sorted(tensors))}, not pixels", "write it by --save-samples")
    pixels: Pixels = tensors["pixels"]
    check_pixels(pixels, f"samples of {path}")
    return pixels, header.origin
