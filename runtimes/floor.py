"""The noise floor: how far the reference is from itself when nothing but its rounding changes.

Other thread counts, kernels and layouts sum in another order; a sample's last bit is a matter of rounding; float64 hardly rounds
at all. None of these is wrong, so no program can be asked to be closer to the reference than they are. A program in half
precision is also measured against the reference in half precision.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Bundle, Trajectory
from edge_sd.bundle.manifest import DECODER, REFERENCE
from edge_sd.evaluation.metrics import band_names, band_snr_db, snr_db
from edge_sd.validation import Record

if TYPE_CHECKING:
    import torch
    from torch import nn

Precision = Literal["fp32", "fp16"]
_TRAJECTORIES = 2  # are followed; what is taken is a minimum over many steps already


class Floor(Record):
    """The floor of each program, in decibels: the worst of all perturbations and trajectories.

    Attributes:
        perturbations: what was changed, in words.
        steps: of the denoiser's prediction at each step.
        bands: the same by wavelet subband, at each step.
        temporal, decoder: of the other programs, where the bundle has them.
    """

    precision: Precision
    perturbations: tuple[str, ...]
    steps: tuple[float, ...]
    bands: tuple[dict[str, float], ...]
    temporal: float | None = None
    decoder: float | None = None


@dataclass(frozen=True)
class _Perturbation:
    """One legal change: of the model, of its input, of the way it is computed."""

    name: str
    dtype: str = "float32"
    channels_last: bool = False
    threads: int | None = None
    onednn: bool = True
    jitter: bool = False


_ALL = (
    _Perturbation("one thread", threads=1),
    _Perturbation("without oneDNN", onednn=False),
    _Perturbation("channels last", channels_last=True),
    _Perturbation("the sample's last bit", jitter=True),
    _Perturbation("float64", dtype="float64"),
)
_HALF = _Perturbation("float16", dtype="float16")


def noise_floor(
    bundle: Bundle, precision: Precision = "fp32", observe: Callable[[int, int], None] = lambda done, total: None
) -> Floor:
    """Measure the floor with the reference inside the bundle.

    Args:
        precision: of the program that is to be judged.
        observe: called with (perturbations done, perturbations in all).

    Raises:
        EdgeSDError: the reference is damaged.
    """
    from edge_sd.quantize.checkpoint import load_any

    checkpoint = load_any(bundle.path / REFERENCE)
    simulated = checkpoint.header.kind != "checkpoint"
    chosen = [*_ALL, *([_HALF] if precision == "fp16" else [])]
    plan, goldens = bundle.plan, bundle.golden.trajectories[:_TRAJECTORIES]
    steps = np.full((len(plan),), np.inf)
    bands = [dict.fromkeys(band_names(bundle.manifest.sample_shape), np.inf) for _ in range(len(plan))]
    others: dict[str, float] = {}
    for number, perturbation in enumerate(chosen):
        model = checkpoint.build(bundle.plan.header.widths)
        # The integers of a quantized denoiser take no other dtype; a decoder beside it does.
        for golden in () if simulated and perturbation.dtype != "float32" else goldens:
            for row, prediction in enumerate(_predictions(model, plan.program, golden, perturbation)):
                steps[row] = min(steps[row], snr_db(golden.predictions[row], prediction))
                for name, value in band_snr_db(golden.predictions[row], prediction).items():
                    bands[row][name] = min(bands[row][name], value)
        for name, value in _others(bundle, model, perturbation):
            others[name] = min(others.get(name, np.inf), value)
        observe(number + 1, len(chosen))
    return Floor(
        precision=precision,
        perturbations=tuple(each.name for each in chosen),
        steps=tuple(steps.tolist()),
        bands=tuple(bands),
        **others,
    )


def _predictions(model: Any, programs: np.ndarray, golden: Trajectory, perturbation: _Perturbation) -> Iterator[np.ndarray]:
    from edge_sd.models.stepped import select

    for row in range(len(golden.samples)):
        select(model, int(programs[row]))
        sample = golden.samples[row : row + 1]
        if perturbation.jitter:
            sample = last_bit(sample)
        yield _run(model, lambda x, features: model.denoise(x, features), (sample, golden.features[row : row + 1]), perturbation)[
            0
        ]


def last_bit(sample: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every value moved to a neighbouring float32, up or down at random (seeded)."""
    up = np.random.default_rng(0).random(sample.shape) < 0.5
    return np.nextafter(sample, np.where(up, np.inf, -np.inf), dtype=np.float32)


def _others(bundle: Bundle, model: Any, perturbation: _Perturbation) -> Iterator[tuple[str, float]]:
    """The floor of the programs temporal and decoder, under one perturbation."""
    from edge_sd.decoder import load_decoder
    from edge_sd.export import TemporalProgram

    names = {contract.program for contract in bundle.manifest.contracts}
    golden, labels = bundle.golden.trajectories[0], bundle.golden.header.labels
    # A program in half precision keeps its sines and cosines in float32, see the Core ML target.
    if "temporal" in names and perturbation.dtype != "float16":
        import torch

        program = TemporalProgram(model)
        label = (torch.full((1,), labels[0], dtype=torch.int32),) if labels else ()
        times = bundle.plan.timestep.astype(np.float32)[:, None]
        rows = [_run(program, lambda t: program(t, *label), (time,), perturbation) for time in times]
        yield "temporal", snr_db(golden.features, np.concatenate(rows))
    if "decoder" in names and golden.image is not None:
        decoder = load_decoder(bundle.path / DECODER).build()
        latent = golden.final[None]
        if perturbation.jitter:
            latent = last_bit(latent)
        yield "decoder", snr_db(golden.image, _run(decoder, decoder, (latent,), perturbation)[0])


def _run(
    module: "nn.Module", call: "Callable[..., torch.Tensor]", inputs: tuple[np.ndarray, ...], perturbation: _Perturbation
) -> np.ndarray:
    """One call of a module as a perturbation has it → float32."""
    import torch

    dtype = getattr(torch, perturbation.dtype)
    module.to(dtype)
    tensors = [torch.from_numpy(value).to(dtype) for value in inputs]
    if perturbation.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        tensors = [tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor for tensor in tensors]
    with torch.no_grad(), _computed_as(perturbation):
        out: np.ndarray = call(*tensors).float().numpy()
    return out


@contextmanager
def _computed_as(perturbation: _Perturbation) -> Iterator[None]:
    """Threads and kernels of a perturbation, and as they were again."""
    import torch

    threads, flags = torch.get_num_threads(), torch.backends.mkldnn.flags(enabled=perturbation.onednn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a precision that no CPU has
        with flags:
            torch.set_num_threads(perturbation.threads or threads)
            try:
                yield
            finally:
                torch.set_num_threads(threads)
