"""From a path to what a report is of: a run's folder, or a bundle, each with the results that belong to it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from edge_sd.bundle import Bundle, open_bundle
from edge_sd.bundle.bundle import SUFFIX, is_bundle
from edge_sd.bundle.manifest import MANIFEST, REFERENCE
from edge_sd.checkpoint import CheckpointHeader, Provenance
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation import psnr_db
from edge_sd.files import read_model, read_tensors
from edge_sd.foreign import open_model
from edge_sd.models.config import ModelConfig
from edge_sd.models.count import count
from edge_sd.pipeline.stages import StageRecord
from edge_sd.quantize.checkpoint import QuantizedHeader, load_any
from edge_sd.report.data import Curve, Gates, ModelRow, SampleHeader, Sheet, Subject
from edge_sd.report.pictures import Files, Images, gallery
from edge_sd.report.records import Records, read_records
from edge_sd.training.loop import CHECKPOINT, METRICS
from edge_sd.training.state import read_metrics

RUN = "run.yaml"
_CURVE_POINTS = 200
_ROLES = ("real", "teacher", "student", "exported")
_STAGES = ("autoencoder", "teacher", "student", "export", "samples", "parity", "bench")  # in the order of a walk
Item = TypeVar("Item")


@dataclass(frozen=True)
class Found:
    """A subject with what the report needs beside it.

    Attributes:
        files: PNG bytes of its pictures, by their names in the report's JSON.
        records: all results that were looked through.
    """

    subject: Subject
    bundle: Bundle
    files: Files
    records: Records


def find_subject(path: Path, folder: str, prefix: str, results: Sequence[Path] = ()) -> Found:
    """Read a run's folder, a bundle, or a folder that holds one bundle, as quantize writes it.

    Args:
        folder: of the report's pictures, relative to its JSON.
        prefix: of their names.
        results: files and folders with further results; those beside the bundle are looked through anyway.

    Raises:
        UsageError: it is none of these.
        EdgeSDError: what is there is damaged.
    """
    bundle = bundle_of(path)
    if (path / RUN).is_file():
        return _run(path, bundle, folder, prefix, results)
    place = bundle.resolve().parent if is_bundle(path) else path
    return _bundle(bundle, folder, prefix, [place, *results])


def bundle_of(path: Path) -> Path:
    """The bundle of a run, the only one of a folder, or the one that is given.

    Raises:
        EdgeSDError: the path does not exist.
        UsageError: there is none, or more than one.
    """
    if not path.exists():
        raise EdgeSDError(f"{path} does not exist", "a run's folder, or a bundle NAME.edgesd")
    if (path / RUN).is_file():
        config = _config(path / RUN)
        bundle = path / f"{config.get('name', '')}{SUFFIX}"
        if config.get("kind") == "ablation" or not (bundle / MANIFEST).is_file():
            held = "is an ablation's folder" if config.get("kind") == "ablation" else f"holds no {bundle.name} yet"
            raise UsageError(f"{path} {held}", "edge-sd run writes the report of an ablation itself, and of a run at its end")
        return bundle
    if is_bundle(path):
        return path
    bundles = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else []
    if len(bundles) == 1:
        return bundles[0]
    held = f"holds {len(bundles)} bundles" if bundles else "is no run, and holds no bundle"
    raise UsageError(f"{path} {held}", "a run's folder, or a bundle NAME.edgesd")


# A bundle


def _bundle(path: Path, folder: str, prefix: str, places: Sequence[Path], *, goldens: bool = True) -> Found:
    bundle, records = open_bundle(path), read_records(places)
    header = load_any(path / REFERENCE).header
    subject = Subject(
        name=path.stem,
        source="bundle",
        models=[_row("exported model", bundle.manifest.model, bundle.manifest.weights_digest, header.provenance)],
        timesteps=bundle.plan.timestep.tolist(),
        bundle=bundle.manifest,
        nfe=len(bundle.plan),
        stochastic=bundle.plan.stochastic,
    )
    files: Files = {}
    if goldens:
        pictures, files = gallery([golden_images(bundle, path.stem)], folder, prefix, same_noise=True)
        subject = subject.model_copy(update={"gallery": pictures})
    return _with_results(Found(subject, bundle, files, records), header, folder, prefix)


def golden_images(bundle: Bundle, title: str, reference: str = "") -> Images:
    """What the reference drew of a bundle's golden trajectories, decoded where there is a decoder."""
    golden = bundle.golden
    values = np.stack([one.final if one.image is None else one.image for one in golden.trajectories])
    about = f"golden trajectories of seed {golden.header.seed}, by {golden.header.reference}"
    return Images(title, about, values, reference)


def _with_results(found: Found, header: CheckpointHeader | QuantizedHeader, folder: str, prefix: str) -> Found:
    """Add the results that are of the bundle; of two of one kind, device and runtime the newer one."""
    subject, records, manifest = found.subject, found.records, found.bundle.manifest
    digests = {manifest.digest, *(row.weights_digest for row in subject.models)}
    parity = [each for each in records.parity if _is_of(each.result.bundle_digest, each.result.bundle, found.bundle)]
    proofs = _newest(parity, lambda each: each.result.title)
    bench = [each for each in records.bench if each.bundle_digest == manifest.digest]
    # A proof that a device made on its way to the times is one too.
    timed = _newest(bench, lambda each: (each.device.title, each.job.runtime, each.job.threads))
    titles = {each.result.title for each in proofs}
    further = [each.parity for each in timed if each.parity is not None and each.parity.title not in titles]
    own = [each for each in records.evaluations if each.origin.digest in digests]
    evaluations = _newest(own, lambda each: (each.origin.runtime, each.origin.steps, each.real.digest, each.n))
    files, sheets = dict(found.files), []
    for index, each in enumerate(proofs):
        if each.picture is not None:
            file = f"{folder}/{prefix}parity-{index}.png"
            files[file] = each.picture.read_bytes()
            sheets.append(Sheet(title=each.result.title, file=file))
    calibration = header.calibration if isinstance(header, QuantizedHeader) else None
    # Of one model and one calibration there may be many: records of before they knew a digest are told by the latter.
    quantized = [
        each for each in records.quantizations if (each.digest in digests if each.digest else each.calibration == calibration)
    ]
    changes: dict[str, Any] = {
        "parity": [*(each.result for each in proofs), *_newest(further, lambda each: each.title)],
        "sheets": sheets,
        "bench": timed,
        "evaluations": evaluations,
        "quantization": quantized[-1] if quantized else None,
    }
    return replace(found, subject=subject.model_copy(update=changes), files=files)


def _is_of(digest: str, name: str, bundle: Bundle) -> bool:
    """Results of before they knew a digest are told by the bundle's name."""
    return digest == bundle.manifest.digest if digest else name == bundle.path.name


def _newest(items: Iterable[Item], key: Callable[[Item], object]) -> list[Item]:
    """The last one of each key, in the order in which keys came first."""
    return list({key(item): item for item in items}.values())


def _row(role: str, model: ModelConfig, digest: str, provenance: Provenance) -> ModelRow:
    found = count(model)
    return ModelRow(
        role=role,
        parameters=found.parameters,
        macs=found.macs,
        macs_with_attention=found.macs + found.attention_macs,
        gating=model.gating,
        weights_digest=digest,
        provenance=provenance,
    )


# A run


def _run(path: Path, bundle: Path, folder: str, prefix: str, results: Sequence[Path]) -> Found:
    config = _config(path / RUN)
    paths = {role: path / "samples" / f"{role}.safetensors" for role in _ROLES}
    samples = {role: read_tensors(SampleHeader, file) for role, file in paths.items() if file.is_file()}
    found = _bundle(bundle, folder, prefix, [path, *results], goldens=not samples)
    gates = path / "samples" / "gates.safetensors"
    checkpoints = _checkpoints(path, config)
    changes: dict[str, Any] = {
        "source": "run",
        "config": config,
        "seconds": _seconds(path / "stages"),
        "models": [_model_row(role, file) for role, file in checkpoints.items()] or found.subject.models,
        "curves": {
            role: _curve(log)
            for role, file in checkpoints.items()
            if (log := (file if file.is_dir() else file.parent) / METRICS).is_file()
        },
        "gates": [
            Gates(name=gate, values=values.tolist())
            for gate, values in (read_tensors(SampleHeader, gates)[1].items() if gates.is_file() else ())
        ],
    }
    files = found.files
    if samples:
        images = [
            Images(role, f"in {header.runtime}, seed {header.seed}" if role != "real" else "of the data",
                   tensors["samples"], "student" if role == "exported" else "")
            for role, (header, tensors) in samples.items()
        ]  # fmt: skip
        changes["gallery"], drawn = gallery(images, folder, prefix, same_noise=True)
        files = {**files, **drawn}
        if {"student", "exported"} <= samples.keys():
            changes["exported_psnr_db"] = psnr_db(samples["student"][1]["samples"], samples["exported"][1]["samples"])
    return replace(found, subject=found.subject.model_copy(update=changes), files=files)


def _config(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise EdgeSDError(f"cannot read {file}: {' '.join(str(error).split())}", "edge-sd run writes it again") from error
    if not isinstance(values, dict):
        raise EdgeSDError(f"{file} holds no settings", "edge-sd run writes it again")
    return values


def _checkpoints(path: Path, config: Mapping[str, Any]) -> dict[str, Path]:
    """Role → checkpoint, of those that are there: a teacher may be another run's, which may have gone."""
    teacher = config.get("teacher")
    given = teacher.get("checkpoint") if isinstance(teacher, dict) else None
    candidates = {
        "teacher": path / "teacher" / CHECKPOINT if given is None else Path(str(given)),
        "student": path / "student" / CHECKPOINT,
    }
    return {role: file for role, file in candidates.items() if file.exists()}


def _model_row(role: str, path: Path) -> ModelRow:
    header = open_model(path).checkpoint.header
    return _row(role, header.model, header.digest, header.provenance)


def _curve(path: Path) -> Curve:
    """Average the log over at most `_CURVE_POINTS` stretches."""
    records = read_metrics(path)
    terms = [key for key in records[0] if key not in ("step", "gradient_norm", "learning_rate", "images_per_s", "wait_share")]
    stretches = np.array_split(np.arange(len(records)), min(_CURVE_POINTS, len(records)))
    return Curve(
        steps=[int(records[stretch[-1]]["step"]) for stretch in stretches],
        terms={term: [float(np.mean([records[i][term] for i in stretch])) for stretch in stretches] for term in terms},
    )


def _seconds(folder: Path) -> dict[str, float]:
    """What each stage took, in the order in which a run goes through them."""
    found = {file.stem: read_model(StageRecord, file).seconds for file in sorted(folder.glob("*.json"))}

    def place(stage: str) -> tuple[int, str]:
        kind = stage.partition("-")[0]
        return (_STAGES.index(kind) if kind in _STAGES else len(_STAGES)), stage

    return dict(sorted(found.items(), key=lambda item: place(item[0])))
