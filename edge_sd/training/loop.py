"""The training loop: steps, an average of the weights, a log, pictures, and a state from which the same command goes on.

Everything a step draws is a function of (seed, step), so a run that was killed ends with the weights of one that was not.
"""

import copy
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from edge_sd.checkpoint import Provenance, versions
from edge_sd.data.images import grid, save_png
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import explained
from edge_sd.training.config import TrainConfig
from edge_sd.training.learner import Learner, Result
from edge_sd.training.samples import Samples
from edge_sd.training.state import check_settings, cut_metrics, finite_or_none, load_state, save_state

CHECKPOINT, STATE, METRICS = "checkpoint.safetensors", "state.safetensors", "metrics.jsonl"


@dataclass(frozen=True)
class Progress:
    """What an observer is told after each step.

    Attributes:
        step, steps: done and in all.
        terms: the loss's terms of this step, weighted, over the whole batch.
        images_per_s: since the (re)start, over all processes.
    """

    step: int
    steps: int
    terms: dict[str, float]
    images_per_s: float

    def __str__(self) -> str:
        return " ".join(f"{name} {value:.4f}" for name, value in self.terms.items()) + f"  {self.images_per_s:.0f} images/s"


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
    already finished is returned as it is.

    Raises:
        UsageError: `out` holds something that is no run.
        EdgeSDError: a run with other settings is there, a loss is not finite, or the disk is full.
    """
    settings = _settings(learner, samples, config, provenance)
    finished = _prepare(out, learner, settings, overwrite)
    if finished is not None:
        return finished
    accelerator = Accelerator()
    share = _share(config.batch_size, accelerator.num_processes, accelerator.process_index)
    ema = copy.deepcopy(learner.model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        learner.parameters(),
        lr=config.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=config.weight_decay,
        fused=accelerator.device.type in ("cpu", "cuda"),
    )
    start = load_state(out / STATE, settings, learner, ema, optimizer) if (out / STATE).exists() else 0
    if accelerator.is_main_process:
        cut_metrics(out / METRICS, start)
    for module in (ema, *learner.companions):
        module.to(accelerator.device)
    wrapped, optimizer = accelerator.prepare(learner, optimizer)
    autocast = torch.autocast(
        accelerator.device.type, torch.bfloat16, enabled=uses_bfloat16(config.precision, accelerator.device)
    )
    wrapped.train()
    began, last_good = time.perf_counter(), f"{out / STATE} (step {start})" if start else "none yet"
    with explained(out), (out / METRICS).open("a") as log:
        for step in range(start, config.steps):
            rate = learning_rate(config, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed((config.seed * 1_000_003 + step) % 2**63)  # dropout
            batch = learner.draw(samples, config, step, share)
            with autocast:
                terms: dict[str, Tensor] = wrapped(*(value.to(accelerator.device) for value in batch))
            means = accelerator.reduce(torch.stack([value.detach() for value in terms.values()]), "mean")
            values = dict(zip(terms, means.tolist(), strict=True))
            _refuse_non_finite(values, step, last_good)
            accelerator.backward(sum(terms.values()))
            norm = accelerator.clip_grad_norm_(wrapped.parameters(), config.clip).item()
            _refuse_non_finite({"gradient norm": norm}, step, last_good)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            _average(ema, learner.model, min(config.ema_decay, (1 + step) / (10 + step)))
            done = step + 1
            speed = (done - start) * config.batch_size / (time.perf_counter() - began)
            if not accelerator.is_main_process:
                continue
            observe(Progress(done, config.steps, values, speed))
            record = {
                "step": done,
                **values,
                "loss": sum(values.values()),
                "gradient_norm": norm,
                "learning_rate": rate,
                "images_per_s": speed,
            }
            log.write(json.dumps({name: finite_or_none(value) for name, value in record.items()}) + "\n")
            if done % config.save_every == 0 and done < config.steps:
                log.flush()
                save_state(out / STATE, done, settings, learner, ema, optimizer)
                last_good = f"{out / STATE} (step {done})"
            if config.sample_every and (done % config.sample_every == 0 or done == config.steps):
                pictures = learner.preview(ema, samples, config.seed)
                save_png(out / "samples" / f"step_{done:06d}.png", grid(pictures))
    _refuse_non_finite({name: float(value.abs().sum()) for name, value in ema.state_dict().items()}, config.steps - 1, last_good)
    final = learner.finish(ema, samples, _completed(provenance, samples, config, settings))
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


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether the forward pass is autocast to bfloat16."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


# Helpers


def _settings(learner: Learner, samples: Samples, config: TrainConfig, provenance: Provenance) -> dict[str, Any]:
    """Everything that decides the result; how often it is saved or shown does not."""
    return {
        "made_by": provenance.made_by,
        **learner.settings(),
        "train": config.model_dump(mode="json", exclude={"save_every", "sample_every"}),
        "data_digest": samples.digest,
        "parents": provenance.parents,
    }


def _prepare(out: Path, learner: Learner, settings: dict[str, Any], overwrite: bool) -> Result | None:
    """Make the folder, or return the result of a finished run with the same settings."""
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
    if overwrite:
        for name in (result, STATE, METRICS, "decoder.safetensors"):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / "samples", ignore_errors=True)
    if (out / result).exists():
        found = learner.load(out / result)
        check_settings(out / result, found.header.provenance.settings, settings)
        return found
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
    return None


def _share(batch_size: int, processes: int, rank: int) -> slice:
    if batch_size % processes:
        raise UsageError(f"a batch of {batch_size} cannot be shared by {processes} processes", "choose a multiple")
    size = batch_size // processes
    return slice(rank * size, (rank + 1) * size)


def _refuse_non_finite(values: dict[str, float], step: int, last_good: str) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise EdgeSDError(
                f"step {step + 1}: {name} is {value}; the last good state is {last_good}",
                "a lower --learning-rate, --precision fp32, or more --warmup",
            )


def _average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)


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
