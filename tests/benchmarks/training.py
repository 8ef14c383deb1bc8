"""How fast is a training step? `make bench`, or `python tests/benchmarks/training.py PRESET THREADS [compile] [channels_last]`.

`edge_sd.training.fit` against the loop that is usually written: fp32, wavelets as grouped convolutions, AdamW, the average
parameter by parameter, each batch drawn when it is needed. Interleaved A B B A in one process: the ratio's median and its 95 %
bootstrap interval. Then the same for each part of the difference alone.
"""

import sys
import tempfile
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import Call, interleaved, ratio_interval
from typing_extensions import Self

from edge_sd.data import DataConfig, ImageData, open_data
from edge_sd.diffusion import SCHEDULES
from edge_sd.models import PRESETS, ModelConfig
from edge_sd.models.gating import WaveletDown
from edge_sd.models.unet import SpectralUNet
from edge_sd.models.wavelets import DWT2, IDWT2
from edge_sd.training import Progress, TrainConfig, fit
from edge_sd.training.average import Average
from edge_sd.training.learner import DenoiseLearner
from edge_sd.training.loop import learning_rate
from edge_sd.training.samples import PixelSamples

BLOCKS, CALLS, BATCH, EMA = 12, 2, 32, 0.995
SCHEDULE = SCHEDULES["cosine"]
CONFIG = TrainConfig(steps=1_000_000, batch_size=BATCH, save_every=1_000_000, sample_every=0)


class Ours(AbstractContextManager["Ours"]):
    """`fit` in a thread of its own, where it is held after every step until it is called."""

    def __init__(self, model: ModelConfig, data: ImageData, **changes: Any) -> None:
        self._error: BaseException | None = None
        self._go, self._done, self._stop = threading.Semaphore(0), threading.Semaphore(0), False
        self._folder = tempfile.TemporaryDirectory()
        config = CONFIG.model_copy(update=changes)
        self._thread = threading.Thread(target=self._run, args=(model, data, config), daemon=True)

    def _run(self, model: ModelConfig, data: ImageData, config: TrainConfig) -> None:
        try:
            fit(model, SCHEDULE, "v", data, config, Path(self._folder.name), observe=self._observe)
        except KeyboardInterrupt:
            return
        except BaseException as error:  # said by whoever waits for a step
            self._error = error
        finally:
            self._done.release()

    def _observe(self, progress: Progress) -> None:
        self._done.release()
        self._go.acquire()
        if self._stop:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        self._thread.start()
        self._wait()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop = True
        self._go.release()
        self._thread.join()
        self._folder.cleanup()

    def __call__(self) -> None:
        """One step."""
        self._go.release()
        self._wait()

    def _wait(self) -> None:
        self._done.acquire()
        if self._error is not None:
            raise self._error


def plain(model: ModelConfig, data: ImageData, *, wavelets: bool = False, bfloat16: bool = False, fused: bool = False) -> Call:
    """One step of the usual loop, with one part of ours or none."""
    torch.manual_seed(0)
    learner = DenoiseLearner(SpectralUNet(model), SCHEDULE, "v").train()
    for module in learner.modules():
        if isinstance(module, (DWT2, IDWT2, WaveletDown)):
            module.training = wavelets  # which form they take
    optimizer = torch.optim.AdamW(learner.parameters(), betas=(0.9, 0.99), fused=fused or None)
    average, samples, step = Average(learner.model), PixelSamples(data), 0

    def call() -> None:
        nonlocal step
        optimizer.param_groups[0]["lr"] = learning_rate(CONFIG, step)
        batch = learner.draw(samples, CONFIG, step, slice(None))
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = torch.stack(list(learner(*batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), CONFIG.clip)
        optimizer.step()
        if fused:
            average.update(learner.model, EMA)
        else:
            with torch.no_grad():
                for ours, theirs in zip(average.module.parameters(), learner.model.parameters(), strict=True):
                    ours.mul_(EMA).add_(theirs, alpha=1 - EMA)
        loss.item()
        step += 1

    return call


def main(preset_name: str = "tiny16", threads: int = 1, *more: str) -> None:
    """Measure and print."""
    torch.set_num_threads(threads)
    model = PRESETS[preset_name].config
    if model.in_channels != 3:  # what is timed does not depend on what the channels mean
        model = model.model_copy(update={"in_channels": 3, "out_channels": 3})
    data = open_data(DataConfig(count=512), model.image_size)
    print(f"{preset_name}, batch {BATCH}, {threads} threads, {BLOCKS} blocks A B B A of {CALLS} steps")
    for options in ({}, {"precision": "fp32"}, *({option: True} for option in more)):
        with Ours(model, data, **options) as ours:
            compare("fit" + "".join(f", {name} {value}" for name, value in options.items()), plain(model, data), ours)
    for part in ("wavelets", "bfloat16", "fused"):
        compare(f"{part} alone", plain(model, data), plain(model, data, **{part: True}))


def compare(name: str, usual: Call, ours: Call) -> None:
    """Print one line."""
    a, b = interleaved(usual, ours, blocks=BLOCKS, calls=CALLS)
    low, median, high = ratio_interval(a, b)
    print(
        f"{name:24s} {np.median(a):7.1f} → {np.median(b):7.1f} ms a step, {median:.2f}× (95 % {low:.2f}–{high:.2f})", flush=True
    )


if __name__ == "__main__":
    main(*sys.argv[1:2], *(int(value) for value in sys.argv[2:3]), *sys.argv[3:])
