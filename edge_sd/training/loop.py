"""The training loop: steps, an average of the weights, a log, pictures, and a state from which the same command goes on.

Everything a step draws is a function of (seed, step), so a run that was killed ends with the weights of one that was not.
Processes, slices and formats are of `devices`: the same loop runs on one CPU and, under `accelerate launch`, on many nodes.
"""

import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from edge_sd.checkpoint import Provenance, versions
from edge_sd.data.images import grid, save_png
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import alone, explained
from edge_sd.training import devices
from edge_sd.training.average import Average, moments, put_moments, whole
from edge_sd.training.config import TrainConfig
from edge_sd.training.learner import Learner, Result
from edge_sd.training.prefetch import Prefetch
from edge_sd.training.samples import Samples
from edge_sd.training.state import Layout, State, check_settings, cut_metrics, finite_or_none, load_state, save_state

CHECKPOINT, STATE, METRICS = "checkpoint.safetensors", "state.safetensors", "metrics.jsonl"


@dataclass(frozen=True)
class Progress:
    """What an observer is told after each step.

    Attributes:
        step, steps: done and in all.
        terms: the loss's terms of this step, weighted, over the whole batch.
        images_per_s: since the (re)start, over all processes.
        wait_share: of the time since then, how much this process stood waiting for data.
    """

    step: int
    steps: int
    terms: dict[str, float]
    images_per_s: float
    wait_share: float = 0.0

    def __str__(self) -> str:
        terms = " ".join(f"{name} {value:.4f}" for name, value in self.terms.items())
        return f"{terms}  {self.images_per_s:.0f} images/s  data {100 * self.wait_share:.1f} %"


def train(
    learner: Learner,
    samples: Samples,
    config: TrainConfig,
    out: Path,
    provenance: Provenance,
    *,
    overwrite: bool = False,
    observe: Callable[[Progress], None] = lambda progress: None,
) -> Any:
    """Train until `config.steps`, going on from `out`'s state if there is one, and return the learner's result.

    `out` receives the result's file, metrics.jsonl and samples/; state.safetensors stands there until the end. A run that is
    already finished is returned as it is. Where several processes were launched, each calls this and one of them writes; `out`
    must be the same folder for all.

    Raises:
        UsageError: `out` holds something that is no run, or a batch cannot be divided.
        EdgeSDError: a run with other settings is there, or another process at work; a loss is not finite, or the disk is full.
    """
    settings = _settings(learner, samples, config, provenance)
    finished = _finished(out, learner, settings, overwrite)
    if finished is not None:
        return finished
    accelerator = devices.open_accelerator()
    with explained(out), alone(out, "is training") if accelerator.is_main_process else nullcontext():
        if overwrite and accelerator.is_main_process:
            _clear(out, learner.result_name)
        accelerator.wait_for_everyone()
        return _train(learner, samples, config, out, provenance, settings, accelerator, observe)


def _train(
    learner: Learner,
    samples: Samples,
    config: TrainConfig,
    out: Path,
    provenance: Provenance,
    settings: dict[str, Any],
    accelerator: Accelerator,
    observe: Callable[[Progress], None],
) -> Any:
    """The run itself, as one of the accelerator's processes."""
    device, processes = accelerator.device, accelerator.num_processes
    share = devices.share_of(config, processes, accelerator.process_index)
    layout = Layout(processes=processes, slices=config.accumulate, compiled=config.compile)
    average = Average(learner.model)
    found = load_state(out / STATE, settings, layout, random=learner.random) if (out / STATE).exists() else None
    start = found.step if found else 0
    if found:
        learner.load_state_dict(found.learner)
        average.module.load_state_dict(found.average)
    if accelerator.is_main_process:
        cut_metrics(out / METRICS, start)
    form = devices.memory_format(config, device)
    for module in (learner, average.module, *learner.companions):
        module.to(device).to(memory_format=form)  # type: ignore[call-overload]
    if config.checkpoint_activations:
        devices.recompute(learner.model, learner.units)
    if config.compile:
        learner.compile()
    raw_optimizer = torch.optim.AdamW(
        learner.parameters(),
        lr=config.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(learner, [name for name, _ in learner.named_buffers()])
    wrapped, optimizer = accelerator.prepare(learner, raw_optimizer)
    average.follow(learner.model)
    if average.sharded and not learner.splits_weights:
        raise UsageError(
            "slim widths are cut out of whole weights, which this launcher spreads over processes", "launch with DDP, not FSDP"
        )
    if found:
        put_moments(raw_optimizer, found.moments)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=devices.uses_bfloat16(config.precision, device))
    ahead = Prefetch(
        lambda step: learner.draw(samples, config, step, share), range(start, config.steps), pin=device.type == "cuda"
    )

    def move(value: Tensor) -> Tensor:
        moved = value.to(device, non_blocking=True)
        return moved.to(memory_format=form) if moved.ndim == 4 else moved

    wrapped.train()
    began, last_good = time.perf_counter(), f"{out / STATE} (step {start})" if start else "none yet"
    with explained(out), devices.fast_arithmetic(device), ahead, (out / METRICS).open("a") as log:
        for step in range(start, config.steps):
            rate = learning_rate(config, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            seed = partial(devices.seed_of, config.seed, step, accelerator.process_index)
            terms = devices.backward(accelerator, wrapped, ahead.take(), config.accumulate, seed, move, autocast)
            means = accelerator.reduce(torch.stack(list(terms.values())), "mean")
            norm = whole(accelerator.clip_grad_norm_(wrapped.parameters(), config.clip))
            *means, norm = torch.cat([means, norm[None]]).tolist()  # the step's one wait for the device
            values = dict(zip(terms, means, strict=True))
            _refuse_non_finite({**values, "gradient norm": norm}, step, last_good)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average.update(learner.model, min(config.ema_decay, (1 + step) / (10 + step)))
            done = step + 1
            if accelerator.is_main_process:
                seconds = time.perf_counter() - began
                progress = Progress(
                    done, config.steps, values, (done - start) * config.batch_size / seconds, ahead.waited / seconds
                )
                observe(progress)
                record = {
                    "step": done,
                    **values,
                    "loss": sum(values.values()),
                    "gradient_norm": norm,
                    "learning_rate": rate,
                    "images_per_s": progress.images_per_s,
                    "wait_share": progress.wait_share,
                }
                log.write(json.dumps({name: finite_or_none(value) for name, value in record.items()}) + "\n")
            if done % config.save_every == 0 and done < config.steps:
                if accelerator.is_main_process or average.sharded:  # shards are gathered by all
                    state = _state(done, learner, average, raw_optimizer)
                if accelerator.is_main_process:
                    log.flush()
                    save_state(out / STATE, state, settings, layout)
                last_good = f"{out / STATE} (step {done})"
            if config.sample_every and (done % config.sample_every == 0 or done == config.steps):
                model = average.gather()
                if accelerator.is_main_process:
                    save_png(out / "samples" / f"step_{done:06d}.png", grid(learner.preview(model, samples, config.seed)))
    model = average.gather()
    sums = {name: float(value.abs().sum()) for name, value in model.state_dict().items()}
    _refuse_non_finite(sums, config.steps - 1, last_good)
    final = learner.finish(model, samples, _completed(provenance, samples, config, settings))
    if accelerator.is_main_process:
        final.save(out / learner.result_name)
        (out / STATE).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return final


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of a step: a linear warm-up, then the decay to 0."""
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    share = step / config.steps
    fall = {"cosine": 0.5 * (1 + math.cos(math.pi * share)), "linear": 1 - share, "constant": 1.0}[config.decay]
    return config.learning_rate * warm * fall


# Helpers


def _settings(learner: Learner, samples: Samples, config: TrainConfig, provenance: Provenance) -> dict[str, Any]:
    """Everything that decides the result; how fast it comes and how often it is saved or shown does not."""
    return {
        "made_by": provenance.made_by,
        **learner.settings(),
        "train": config.model_dump(mode="json", exclude=set(TrainConfig.INDIFFERENT)),
        "data_digest": samples.digest,
        "parents": provenance.parents,
    }


def _finished(out: Path, learner: Learner, settings: dict[str, Any], overwrite: bool) -> Result | None:
    """The result of a finished run with the same settings, if there is one that may stay."""
    result = learner.result_name
    ours = {result, STATE, METRICS, "samples", "decoder.safetensors"}
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", "give a folder with -o")
    foreign = (
        sorted(path.name for path in out.iterdir() if path.name not in ours and not path.name.startswith("."))
        if out.exists()
        else []
    )
    if foreign:
        raise UsageError(f"{out} exists and is no training run: it holds {foreign[0]}", "choose another -o")
    if overwrite or not (out / result).exists():
        return None
    found = learner.load(out / result)
    check_settings(out / result, found.header.provenance.settings, settings)
    return found


def _clear(out: Path, result: str) -> None:
    for name in (result, STATE, METRICS, "decoder.safetensors"):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "samples", ignore_errors=True)


def _refuse_non_finite(values: dict[str, float], step: int, last_good: str) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise EdgeSDError(
                f"step {step + 1}: {name} is {value}; the last good state is {last_good}",
                "a lower --learning-rate, --precision fp32, or more --warmup",
            )


def _state(step: int, learner: Learner, average: Average, optimizer: torch.optim.Optimizer) -> State:
    model = average.gather()
    tensors = (learner.state_dict(), model.state_dict(), moments(optimizer))
    return State(step, *({name: whole(value) for name, value in group.items()} for group in tensors))


def _completed(provenance: Provenance, samples: Samples, config: TrainConfig, settings: dict[str, Any]) -> Provenance:
    return provenance.model_copy(
        update={
            "steps": config.steps,
            "images_seen": config.steps * config.batch_size,
            "seed": config.seed,
            "data": samples.about,
            "data_digest": samples.digest,
            "settings": settings,
            "versions": versions(),
        }
    )
