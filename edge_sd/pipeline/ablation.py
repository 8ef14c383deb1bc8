"""The ablation of Spectral Diffusion: gating, spatial and frequency terms switched on and off at one MAC budget, over seeds.

Every variant is trained on the same batches as the others of its seed, draws its samples from the same noise, and is measured
against the same real images; what is compared is the difference to Lite seed by seed.
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import yaml
from pydantic import Field, model_validator
from typing_extensions import Self

from edge_sd.checkpoint import Checkpoint, load_checkpoint
from edge_sd.data import DataConfig, grid, open_data, save_png
from edge_sd.diffusion import SCHEDULES, PlanChoice
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation.draw import CheckpointDrawer, cores, draw
from edge_sd.evaluation.features import load_features
from edge_sd.evaluation.gates import gate_means
from edge_sd.evaluation.record import Evaluation
from edge_sd.evaluation.recovery import recovery
from edge_sd.evaluation.reference import EvaluationSettings, Reference, check_enough, choose
from edge_sd.files import read_model, write_model, write_text
from edge_sd.models import ModelConfig
from edge_sd.models.count import count
from edge_sd.pipeline.config import AutoencoderSection, ModelSection, TeacherSection
from edge_sd.pipeline.learning import Learning, Update
from edge_sd.pipeline.stages import Stages, hash_of, refuse_many_processes
from edge_sd.report.ablation import TEACHER, AblationReport, ablation_figure, assemble_ablation, frequency_figure, write_ablation
from edge_sd.training import DistillConfig, TrainConfig, distill
from edge_sd.training.learner import DenoiseLearner
from edge_sd.training.samples import samples_of
from edge_sd.validation import Record


class Variant(Record):
    """Which parts of the method are on."""

    gating: bool = False
    spatial: bool = False
    frequency: bool = False

    def distillation(self, full: DistillConfig) -> DistillConfig:
        """The terms that are on, with the weights of the whole method."""
        weights = {
            "spatial_weight": full.spatial_weight * self.spatial,
            "frequency_weight": full.frequency_weight * self.frequency,
        }
        return full.model_copy(update=weights)


VARIANTS: dict[str, Variant] = {
    "lite": Variant(),
    "gating": Variant(gating=True),
    "spatial": Variant(spatial=True),
    "frequency": Variant(frequency=True),
    "gating+spatial": Variant(gating=True, spatial=True),
    "gating+frequency": Variant(gating=True, frequency=True),
    "all": Variant(gating=True, spatial=True, frequency=True),
}
BASELINE, WHOLE = "lite", "all"
SHOWN = 32  # samples in a picture
RECOVERED = 128  # clean samples of the frequency picture


class MeasureSection(Record):
    """What every variant is measured by.

    Attributes:
        data: real images; those of the training if left out.
        n: of real images and of samples.
        features: see `load_features`; None for the figures that need none.
        feature_size: pixels that images are resized to for them.
        settings: of the figures; `kid_subset_size` may not exceed n.
        seed: of the noise that samples start from.
    """

    data: DataConfig | None = None
    n: int = Field(default=1000, ge=2)
    features: str | None = None
    features_name: str | None = None
    feature_size: int | None = Field(default=None, ge=1)
    settings: EvaluationSettings = EvaluationSettings()
    plan: PlanChoice = PlanChoice()
    seed: int = Field(default=0, ge=0, lt=2**63)


class AblationConfig(Record):
    """An ablation, as it stands in a YAML file with `kind: ablation`.

    Attributes:
        lite, gated: the two models, of one budget.
        train: of every variant; the seed is replaced by each of `seeds`.
        processes: how many variants are trained side by side, each on its share of the cores.
    """

    kind: Literal["ablation"] = "ablation"
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: DataConfig = DataConfig()
    autoencoder: AutoencoderSection | None = None
    teacher: TeacherSection
    lite: ModelSection
    gated: ModelSection
    train: TrainConfig = TrainConfig()
    distill: DistillConfig = DistillConfig()
    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field(default=(0, 1, 2), min_length=1)
    measure: MeasureSection = MeasureSection()
    processes: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in self.variants:
            if name not in VARIANTS:
                raise ValueError(f"unknown variant {name!r}; one of {', '.join(VARIANTS)}")
        for listed in (self.variants, self.seeds):
            if len(set(listed)) < len(listed):
                raise ValueError("variants and seeds: each once")
        for section in (self.lite, self.gated):
            if section.train != TrainConfig():
                raise ValueError("lite and gated are trained alike, by the settings of train")
            if section.config.num_classes is not None:
                raise ValueError("samples are drawn without a class, by models that know none")
        if BASELINE not in self.variants:
            raise ValueError(f"variants: {BASELINE} is what the others are compared with")
        if self.lite.config.sample_shape != self.gated.config.sample_shape:
            raise ValueError(f"lite denoises {self.lite.config.sample_shape}, gated {self.gated.config.sample_shape}")
        return self

    def model(self, variant: str) -> ModelConfig:
        """The model of a variant."""
        return (self.gated if VARIANTS[variant].gating else self.lite).config


@dataclass(frozen=True)
class _Job:
    """One variant and seed, as it travels to another process."""

    config: str  # AblationConfig as JSON
    out: Path
    variant: str
    seed: int
    threads: int

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.seed}"

    @property
    def checkpoint(self) -> Path:
        return self.out / "variants" / self.name / DenoiseLearner.result_name

    @property
    def evaluation(self) -> Path:
        return self.out / "evaluations" / f"{self.name}.json"


class Ablation:
    """One ablation's folder; `walk` does what is not done.

    Args:
        overwrite: train again where the settings have changed.
        observe: called with (stage, "running" or "done before").
        update: called as a long stage goes on.
    """

    def __init__(
        self,
        config: AblationConfig,
        out: Path,
        *,
        overwrite: bool = False,
        observe: Callable[[str, str], None] = lambda stage, state: None,
        update: Update = lambda stage, done, total, note: None,
    ) -> None:
        self.config, self.out, self.overwrite, self.update = config, out, overwrite, update
        self.stages = Stages(out, observe)
        self.learning = _learning(config, out, self.stages, overwrite=overwrite, update=update)

    def walk(self) -> AblationReport:
        """Train and measure everything that is not done, and write ablation.json, ablation.md and the pictures."""
        text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        if self.out.exists() and not (self.out / "run.yaml").exists() and any(self.out.iterdir()):
            raise UsageError(f"{self.out} exists and is no run", "choose another -o")
        refuse_many_processes()
        self.learning.check()
        self._check_measure()
        write_text(self.out / "run.yaml", text)
        self.learning.walk()
        jobs = [
            self._job(variant, seed)
            for seed in self.config.seeds  # a whole round of variants before the next seed: an early look is a fair one
            for variant in self.config.variants
        ]
        self._train(jobs)
        found = [(job.variant, job.seed, read_model(Evaluation, job.evaluation)) for job in jobs]
        found += [(TEACHER, seed, self._measure_teacher(seed)) for seed in self.config.seeds]
        return self._report(found)

    def _check_measure(self) -> None:
        """What could only fail after the first training, now: the extractor, the plan, and how many images there are."""
        measure = self.config.measure
        check_enough(measure.n, load_measure(measure), measure.settings)
        measure.plan.plan(SCHEDULES["cosine"], "v")

    def _report(self, found: list[tuple[str, int, Evaluation]]) -> AblationReport:
        config = self.config
        teacher = self.learning.open_teacher().checkpoint
        models = {name: (_parts(VARIANTS[name]), *_size(config.model(name))) for name in config.variants}
        models[TEACHER] = ((), *_size(teacher.header.model))
        seconds = {
            name: sum(self.stages.seconds[f"{name}-{seed}"] for seed in config.seeds) / len(config.seeds)
            for name in config.variants
        }
        report = assemble_ablation(config.name, config.model_dump(mode="json"), found, models, seconds, BASELINE)
        pictures = {"ablation": ablation_figure(report), "frequency": self._frequency(teacher, found)}
        write_ablation(report, pictures, self.out)
        return report

    def _frequency(self, teacher: Checkpoint, found: list[tuple[str, int, Evaluation]]) -> bytes:
        """Gates, recovery and spectra of the first seed's models."""
        seed, measure = self.config.seeds[0], self.config.measure
        shown = [name for name in (BASELINE, WHOLE) if name in self.config.variants]
        checkpoints = {TEACHER: teacher, **{name: load_checkpoint(self._job(name, seed).checkpoint) for name in shown}}
        header = teacher.header
        samples = samples_of(self.learning.samples)
        indices = np.arange(min(RECOVERED, len(samples)))
        x0 = samples.take(indices, np.zeros(len(indices), bool), np.full((len(indices), 2), 0.5))
        times = np.linspace(header.noise_schedule.timesteps * 0.05, header.noise_schedule.timesteps * 0.95, 19).astype(int)
        recoveries = {
            role: recovery(checkpoint.build(), header.noise_schedule, header.prediction, x0, times.tolist())
            for role, checkpoint in checkpoints.items()
        }
        plan = measure.plan.plan(header.noise_schedule, header.prediction)
        gates = gate_means(checkpoints[WHOLE].build(), plan, seed=seed) if WHOLE in checkpoints else {}
        spectra = {role: evaluation for role, its_seed, evaluation in found if its_seed == seed and role in checkpoints}
        return frequency_figure(gates, plan.timestep, recoveries, dict(sorted(spectra.items(), key=lambda item: item[0])))

    def _job(self, variant: str, seed: int) -> "_Job":
        threads = max(1, cores() // self.config.processes)
        return _Job(self.config.model_dump_json(), self.out, variant, seed, threads)

    def _train(self, jobs: list[_Job]) -> None:
        keys = {**self.learning.key(), "teacher": hash_of(self.learning.teacher_path)}
        todo = [
            job for job in jobs if not self.stages.done(job.name, self._settings(job), keys, [job.checkpoint, job.evaluation])
        ]
        done = len(jobs) - len(todo)
        self.update("variants", done, len(jobs), "")
        pool = ProcessPoolExecutor(self.config.processes, mp_context=multiprocessing.get_context("spawn"))
        running: dict[Future[float], _Job] = {}
        try:
            while todo or running:
                # No more than there are processes: what a pool has taken it finishes, and a variant may take hours.
                while todo and len(running) < self.config.processes:
                    job = todo.pop(0)
                    running[pool.submit(_train_and_measure, job, self.overwrite)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job, seconds = running.pop(future), future.result()
                    done += 1
                    self.stages.keep(job.name, self._settings(job), keys, [job.checkpoint, job.evaluation], seconds)
                    self.update("variants", done, len(jobs), f"{job.name} done in {seconds:.0f} s")
            pool.shutdown()
        except BrokenProcessPool as error:
            raise EdgeSDError(
                "a process that trained a variant died; out of memory?", "fewer processes; the same command goes on"
            ) from error
        finally:
            for process in list((pool._processes or {}).values()):  # those still at work after an error or Ctrl-C
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)

    def _settings(self, job: _Job) -> dict[str, Any]:
        config = self.config
        return {
            "model": config.model(job.variant).model_dump(mode="json"),
            "train": {**config.train.model_dump(mode="json"), "seed": job.seed},
            "distill": VARIANTS[job.variant].distillation(config.distill).model_dump(mode="json"),
            "measure": config.measure.model_dump(mode="json"),
        }

    def _measure_teacher(self, seed: int) -> Evaluation:
        path = self.out / "evaluations" / f"teacher-{seed}.json"
        measure = self.config.measure
        self.stages.run(
            f"teacher-{seed}",
            {"measure": measure.model_dump(mode="json"), "seed": seed},
            {**self.learning.key(), "teacher": hash_of(self.learning.teacher_path)},
            [path],
            lambda: _measure(self.learning.teacher_path, self.config.model_dump_json(), seed, None, path),
        )
        return read_model(Evaluation, path)


def _learning(config: AblationConfig, out: Path, stages: Stages, **rest: Any) -> Learning:
    return Learning(config.data, config.autoencoder, config.teacher, config.lite.config, out, stages, **rest)


def load_measure(measure: MeasureSection) -> Any:
    """The feature extractor, or None.

    Raises:
        UsageError, EdgeSDError: it does not load.
    """
    if measure.features is None:
        return None
    return load_features(measure.features, name=measure.features_name, size=measure.feature_size)


def _parts(variant: Variant) -> tuple[str, ...]:
    return tuple(part for part, on in variant.model_dump().items() if on)


def _size(model: ModelConfig) -> tuple[int, int]:
    """Parameters and MACs."""
    counted = count(model)
    return counted.parameters, counted.macs


# In a worker


def _train_and_measure(job: _Job, overwrite: bool) -> float:
    """Train and measure one variant; the seconds that its training took."""
    torch.set_num_threads(job.threads)
    config = AblationConfig.model_validate_json(job.config)
    learning = _shared(job.config, job.out)
    samples, teacher = learning.samples, learning.open_teacher().checkpoint
    began = time.monotonic()
    distill(
        config.model(job.variant),
        teacher,
        samples,
        config.train.model_copy(update={"seed": job.seed}),
        VARIANTS[job.variant].distillation(config.distill),
        job.checkpoint.parent,
        overwrite=overwrite,
    )
    seconds = time.monotonic() - began
    _measure(job.checkpoint, job.config, job.seed, job.threads, job.evaluation)
    return seconds


def _measure(checkpoint: Path, config: str, seed: int, threads: int | None, out: Path) -> None:
    """Measure samples of a checkpoint and show some; the noise they start from depends on the seed of the training too."""
    measure = AblationConfig.model_validate_json(config).measure
    drawer = CheckpointDrawer(checkpoint, measure.plan, measure.seed + seed)
    pixels = draw(drawer, measure.n, threads=threads)
    save_png(out.with_suffix(".png"), grid(pixels[:SHOWN].transpose(0, 2, 3, 1)))
    write_model(out, _reference(config).evaluate(pixels, drawer.origin))


@lru_cache(maxsize=1)
def _shared(config: str, out: Path) -> Learning:
    """The images and latents, read once in each process."""
    return _learning(AblationConfig.model_validate_json(config), out, Stages(out, lambda name, state: None))


@lru_cache(maxsize=1)
def _reference(config: str) -> Reference:
    """The real images, analysed once in each process."""
    parsed = AblationConfig.model_validate_json(config)
    measure = parsed.measure
    data = measure.data or parsed.data
    size = _learning(parsed, Path(), Stages(Path(), lambda name, state: None)).image_size
    split = data.split or ("training images" if measure.data is None else "held out")
    pixels, real = choose(open_data(data, size), measure.n, split=split, seed=measure.seed)
    return Reference.of(pixels, load_measure(measure), measure.settings, real=real)
