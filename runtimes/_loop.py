"""The denoising loop of a bundle, in any runtime: rows of a class, steps of the plan, the decoder at the end."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Bundle, trace
from edge_sd.diffusion import Plan
from edge_sd.models.config import check_label
from edge_sd.runnable import Session
from edge_sd.runtimes._child import isolated
from edge_sd.runtimes._runtime import Runtime


def label_rows(plan: Plan, temporal: Session, label: int) -> NDArray[np.float32]:
    """The rows of time features of a class, (N, F): the program `temporal`, once a step, before the loop."""
    label_ = np.array([label], dtype=np.int32)
    return np.concatenate([temporal(np.array([t], dtype=np.float32), label_) for t in plan.timestep])


def rows_of(bundle: Bundle, runtime: Runtime, label: int | None, threads: int | None = None) -> NDArray[np.float32]:
    """The plan's own rows or, where the model has classes, those of `label`.

    Raises:
        UsageError: a class is missing, unknown or not wanted.
    """
    check_label(bundle.manifest.model, label)
    if label is None:
        rows: NDArray[np.float32] = bundle.plan.features
        return rows
    return label_rows(bundle.plan, isolated(runtime, bundle, threads, ("temporal",)), label)


class _Decoder(Session):
    """One program of a session of several. Whoever calls the others selects them before each call, as the loop does."""

    def __init__(self, session: Session, program: int, sample_shape: tuple[int, ...]) -> None:
        self._session, self._program, self.sample_shape = session, program, sample_shape

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        self._session.select(self._program)
        return self._session(*inputs)


def open_sampler(runtime: Runtime, bundle: Bundle, threads: int | None = None) -> tuple[Session, Session | None]:
    """A bundle's denoisers, and its decoder where it has one, in one process: see `isolated`."""
    denoisers, contracts = bundle.plan.header.programs, {contract.program: contract for contract in bundle.manifest.contracts}
    if "decoder" not in contracts:
        return isolated(runtime, bundle, threads, denoisers), None
    session = isolated(runtime, bundle, threads, (*denoisers, "decoder"))
    return session, _Decoder(session, len(denoisers), contracts["decoder"].inputs[0].shape[1:])


def sample_bundle(
    session: Session,
    plan: Plan,
    *,
    seed: int = 0,
    count: int = 1,
    features: NDArray[np.float32] | None = None,
    decoder: Session | None = None,
    observe: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float32]:
    """Draw `count` samples one at a time, (count, C, H, W) float32; sample i depends on (seed, i) alone.

    Args:
        features: rows of a class; the plan's own if left out.
        decoder: turns each sample into an image.
    """
    samples = []
    for index in range(count):
        final = trace(plan, session, seed, index, features).final
        samples.append(final if decoder is None else decoder(final[None])[0])
        observe(index + 1, count)
    return np.stack(samples)
