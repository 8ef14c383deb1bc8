"""`edge-sd run`: teacher, student, bundle, samples, parity, latency and report, each once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

from edge_sd.bundle import open_bundle
from edge_sd.checkpoint import Checkpoint, load_checkpoint
from edge_sd.data import grid, rgb, save_png
from edge_sd.devices import BenchResult, Job, bench, find_device
from edge_sd.devices._pool import Task, run_tasks
from edge_sd.devices.host import describe_host
from edge_sd.diffusion import NoiseSchedule, compile_plan, solvers
from edge_sd.errors import EdgeSDError, ParityError, UsageError, unknown
from edge_sd.evaluation.gates import gate_means
from edge_sd.export import ExportRequest, export_bundle, find_targets
from edge_sd.files import fingerprint, plain_name, read_model, write_bytes, write_model, write_tensors, write_text
from edge_sd.pipeline.config import RunConfig
from edge_sd.pipeline.learning import Learning, Update
from edge_sd.pipeline.stages import Stages, hash_of, refuse_many_processes
from edge_sd.report.assemble import assemble
from edge_sd.report.card import figures_of, write_card
from edge_sd.report.data import SampleHeader
from edge_sd.report.parity import difference_sheet
from edge_sd.report.render import HTML, pictures_folder, write_report
from edge_sd.runtimes import find_runtime, open_sampler, runtimes, sample_bundle
from edge_sd.runtimes.floor import Floor, noise_floor
from edge_sd.runtimes.parity import ParityResult, check_parity, precision_of
from edge_sd.sampling import decode, sample_model
from edge_sd.training import distill
from edge_sd.training.loop import CHECKPOINT

CONFIG = "run.yaml"


class Run:
    """One run folder and its stages.

    Args:
        overwrite: train again where the settings have changed; what is derived from weights is always made anew.
        observe: called with (stage, "running" or "done before").
        update: called as a long stage goes on.
    """

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        *,
        overwrite: bool = False,
        observe: Callable[[str, str], None] = lambda stage, state: None,
        update: Update = lambda stage, done, total, note: None,
    ) -> None:
        self.config, self.out, self.overwrite, self.update = config, out, overwrite, update
        self.stages = Stages(out, observe)
        self.learning = Learning(
            config.data, config.autoencoder, config.teacher, config.student.config, out, self.stages,
            overwrite=overwrite, update=update,
        )  # fmt: skip
        self.teacher_path = self.learning.teacher_path
        self.student_path = out / "student" / CHECKPOINT
        self.bundle_path = out / f"{config.name}.edgesd"

    def walk(self) -> list[ParityResult]:
        """Do every stage that is not done and return the parity results.

        Raises:
            UsageError: a name in the configuration is unknown, or `out` holds something else.
            ParityError: at the end, report and all written, if a runtime fell below its gate.
            EdgeSDError: at the end likewise, if a device did not do its job; the same run asks it again.
        """
        self._check()
        text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        if not (self.out / CONFIG).exists():
            write_text(self.out / CONFIG, text)
        self._train()
        write_text(self.out / CONFIG, text)  # only now is it the run that lies here
        self._export()
        self._sample()
        parity = self._parity()
        self._bench()
        elsewhere, failures = self._devices()
        self._report()
        failed = [result.verdict for result in (*parity, *elsewhere) if not result.passed]
        if failed:
            raise ParityError("; ".join(failed), f"{self.out / 'report.html'} shows where")
        if failures:
            raise failures[0]
        return parity

    # Before anything long

    def _check(self) -> None:
        """Every name and size is looked at now, not after the training."""
        refuse_many_processes()
        config = self.config
        if (
            self.out.exists()
            and not (self.out / CONFIG).is_file()
            and (not self.out.is_dir() or any(not path.name.startswith(".") for path in self.out.iterdir()))
        ):
            raise UsageError(f"{self.out} exists and is no run", "choose another -o")
        exported = {target.name for target in find_targets(config.export.targets)}
        for name in (*config.parity.runtimes, *config.bench.runtimes):
            if find_runtime(name).target not in (*exported, "torch"):
                raise UsageError(
                    f"runtime {name} runs the target {runtimes()[name].target}, which is not exported", "add it to export.targets"
                )
        for place in config.bench.devices:
            find_device(place)
        solver = solvers().get(config.sample.solver)
        if solver is None:
            raise unknown("solver", config.sample.solver, solvers())
        solver.visits(NoiseSchedule(), config.sample.steps, config.sample.spacing or solver.default_spacing)
        self.learning.check()
        if config.student.config.num_classes is not None:
            raise UsageError(
                "a run draws samples without a class",
                "edge-sd train, distill and export take class-conditional models one by one",
            )

    # The stages

    def _train(self) -> None:
        self.learning.walk()
        student = self.config.student
        self.stages.run(
            "student",
            student.model_dump(mode="json"),
            {**self.learning.key(), "teacher": hash_of(self.teacher_path)},
            [self.student_path],
            lambda: distill(
                student.config,
                self.learning.open_teacher().checkpoint,
                self.learning.samples,
                student.train,
                student.distill,
                self.student_path.parent,
                overwrite=self.overwrite,
                observe=lambda p: self.learning.trained("student", p),
            ),
        )

    def _export(self) -> None:
        sample, export = self.config.sample, self.config.export

        def action() -> None:
            request = ExportRequest(
                targets=export.targets, options=export.options, solver=sample.solver, steps=sample.steps, spacing=sample.spacing,
                seed=sample.seed, goldens=export.goldens,
            )  # fmt: skip
            export_bundle(
                load_checkpoint(self.student_path),
                self.bundle_path,
                request,
                decoder=self.learning.decoder(),
                overwrite=True,
                observe=lambda what: self.update("export", 0, 1, what),
            )

        settings = {
            "export": export.model_dump(mode="json"),
            "sample": sample.model_dump(mode="json", exclude={"count"}),
            "name": self.config.name,
        }
        self.stages.run("export", settings, {"student": hash_of(self.student_path)}, [self.bundle_path], action)

    def sample_paths(self) -> dict[str, Path]:
        """Where each role's samples are kept: (count, C, H, W) float32."""
        roles = ("real", "teacher", "student", "exported")
        return {role: self.out / "samples" / f"{role}.safetensors" for role in roles}

    def _sample(self) -> None:
        inputs = {
            "teacher": hash_of(self.teacher_path),
            "student": hash_of(self.student_path),
            "bundle": hash_of(self.bundle_path),
        }
        paths = self.sample_paths()
        outputs = [
            *paths.values(),
            *(path.with_suffix(".png") for path in paths.values()),
            self.out / "samples" / "gates.safetensors",
        ]
        settings = {
            "sample": self.config.sample.model_dump(mode="json"),
            "data": self.learning.key(),
            "runtimes": list(self.config.parity.runtimes),
        }
        self.stages.run("samples", settings, inputs, outputs, self._draw_samples)

    def _draw_samples(self) -> None:
        choice, bundle = self.config.sample, open_bundle(self.bundle_path)
        runtime = next((name for name in self.config.parity.runtimes if name != "torch"), "torch")
        student = load_checkpoint(self.student_path)
        denoiser, decoder = open_sampler(find_runtime(runtime), bundle)
        drawn = {
            "real": self.learning.images.centre[: choice.count].astype(np.float32) / 127.5 - 1,
            "teacher": self._from_torch(self.learning.open_teacher().checkpoint, "teacher's samples"),
            "student": self._from_torch(student, "student's samples"),
            "exported": sample_bundle(
                denoiser, bundle.plan, seed=choice.seed, count=choice.count, decoder=decoder,
                observe=lambda done, total: self.update("exported student's samples", done, total, runtime),
            ),
        }  # fmt: skip
        for role, samples in drawn.items():
            header = SampleHeader(role=role, seed=choice.seed, runtime=runtime if role == "exported" else "torch")
            write_tensors(self.sample_paths()[role], {"samples": samples}, header)
            save_png(self.sample_paths()[role].with_suffix(".png"), grid(rgb(samples[:16]), scale=2))
        gates = gate_means(student.build(), bundle.plan, seed=choice.seed)
        write_tensors(
            self.out / "samples" / "gates.safetensors", gates, SampleHeader(role="gates", seed=choice.seed, runtime="torch")
        )

    def _from_torch(self, checkpoint: Checkpoint, label: str) -> np.ndarray:
        choice, header = self.config.sample, checkpoint.header
        plan = compile_plan(
            header.noise_schedule, choice.steps, solver=choice.solver, prediction=header.prediction, spacing=choice.spacing
        )
        samples = sample_model(
            checkpoint.build(), plan, seed=choice.seed, count=choice.count, observe=lambda d, t: self.update(label, d, t, "")
        )
        decoder = self.learning.decoder()
        return samples if decoder is None else decode(decoder, samples)

    def _parity(self) -> list[ParityResult]:
        section, inputs = self.config.parity, {"bundle": hash_of(self.bundle_path)}
        paths = {name: self.out / "parity" / f"{name}.json" for name in section.runtimes}
        floors: dict[str, Floor] = {}

        def action(name: str, path: Path) -> None:
            bundle = open_bundle(self.bundle_path)
            precision = precision_of(bundle, find_runtime(name).target)
            if precision not in floors:
                floors[precision] = noise_floor(bundle, precision, lambda d, t: self.update("noise floor", d, t, ""))
            result, evidence = check_parity(
                bundle,
                name,
                gate=section.gate,
                floor=floors[precision],
                observe=lambda d, t: self.update(f"parity of {name}", d, t, ""),
            )
            write_bytes(path.with_suffix(".png"), difference_sheet(bundle.golden, evidence))
            write_model(path, result)

        for name, path in paths.items():
            outputs = [path, path.with_suffix(".png")]
            settings = section.gate.model_dump(mode="json")
            self.stages.run(f"parity-{name}", settings, inputs, outputs, lambda name=name, path=path: action(name, path))  # type: ignore[misc]
        return [read_model(ParityResult, path) for path in paths.values()]

    def _bench(self) -> None:
        section, host = self.config.bench, describe_host()
        paths = {name: self.out / "bench" / f"{name}.json" for name in section.runtimes}
        for name, path in paths.items():
            job = Job(
                runtime=name,
                threads=section.threads or host.cores,
                prove=False,  # a stage of its own
                least_warmup=section.warmup,
                iterations=section.iterations,
            )
            inputs = {"bundle": hash_of(self.bundle_path), "device": fingerprint(host.lasting)}
            self.stages.run(
                f"bench-{name}",
                job.model_dump(),
                inputs,
                [path],
                lambda job=job, path=path: write_model(path, bench("host", open_bundle(self.bundle_path), job)),  # type: ignore[misc]
            )

    def _devices(self) -> tuple[list[ParityResult], list[EdgeSDError]]:
        """Prove and time the bundle elsewhere; a device that does not answer keeps nothing else from being done."""
        section, failures = self.config.bench, list[EdgeSDError]()
        job = Job(runtime="", threads=section.threads or 1, least_warmup=section.warmup, iterations=section.iterations)
        paths = {place: self.out / "bench" / f"{plain_name(place)}.json" for place in section.devices}

        def action(place: str, path: Path) -> None:
            task = Task(place, job, own_threads=section.threads is None)
            results, failed = run_tasks(
                [task], open_bundle(self.bundle_path), observe=lambda task, d, t, note: self.update(task.title, d, t, note)
            )
            if failed:
                raise failed[0].error
            write_model(path, results[0])

        for place, path in paths.items():
            inputs, settings = {"bundle": hash_of(self.bundle_path)}, {**job.model_dump(), "place": place}
            try:
                self.stages.run(f"bench-{plain_name(place)}", settings, inputs, [path], lambda p=place, o=path: action(p, o))  # type: ignore[misc]
            except EdgeSDError as error:
                failures.append(error)
        found = [read_model(BenchResult, path) for path in paths.values() if path.exists()]
        digest = open_bundle(self.bundle_path).manifest.digest  # what lies there may be of an earlier one
        return [result.parity for result in found if result.parity and result.bundle_digest == digest], failures

    def _report(self) -> None:
        page = self.out / HTML
        report, pictures = assemble([self.out], pictures_folder(page))
        write_report(report, pictures, page)
        write_card(self.bundle_path, figures_of(report.subjects[0]))
