"""From paths to one report: each a subject, and what only several of them have."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_sd.bundle import Bundle
from edge_sd.checkpoint import versions
from edge_sd.errors import UsageError
from edge_sd.report.data import Gallery, Report, Subject
from edge_sd.report.pictures import Files, Images, gallery
from edge_sd.report.subjects import find_subject, golden_images
from edge_sd.runtimes import find_runtime, open_sampler, sample_bundle


@dataclass(frozen=True)
class Choice:
    """What is wanted beside the paths.

    Attributes:
        results: files and folders with results that do not lie beside the bundles.
        chosen: name of the subject to mark among several; the last if left out.
        draw: pictures of each subject that are drawn anew, in `runtime`; 0 shows the golden trajectories.
    """

    results: tuple[Path, ...] = ()
    chosen: str = ""
    draw: int = 0
    runtime: str = "onnxruntime"


def assemble(paths: Sequence[Path], folder: str, choice: Choice | None = None) -> tuple[Report, Files]:
    """Read runs and bundles with the results beside them.

    Args:
        folder: of the pictures, relative to the report's JSON.

    Returns:
        The report, and PNG bytes of its pictures by their names in it.

    Raises:
        UsageError: a path is neither, two are the same, or `chosen` is none of them.
        EdgeSDError: what is there is damaged.
    """
    choice = choice or Choice()
    found = [
        find_subject(path, folder, f"{place}-" if len(paths) > 1 else "", choice.results) for place, path in enumerate(paths)
    ]
    names = _names([each.subject.name for each in found], [each.bundle.path for each in found])
    subjects = [each.subject.model_copy(update={"name": name}) for each, name in zip(found, names, strict=True)]
    files = {file: png for each in found for file, png in each.files.items()}
    digests = {subject.bundle.digest for subject in subjects}
    if len(digests) < len(subjects):
        raise UsageError("the same bundle was given twice", "each run or bundle once")
    if choice.chosen and choice.chosen not in names:
        raise UsageError(f"--chosen {choice.chosen} is none of them", f"one of {', '.join(names)}")
    shown: Gallery | None = None
    if len(subjects) > 1:
        shown, drawn = _side_by_side([each.bundle for each in found], names, folder, choice)
        # The pictures of single subjects would show the same once more, but for those of a run.
        subjects = [_without_goldens(subject, files) for subject in subjects]
        files |= drawn
    records = [each.records for each in found]
    interleaved = {one.model_dump_json(): one for each in records for one in each.comparisons}
    left_out = dict.fromkeys(line for each in records for line in each.left_out)
    report = Report(
        name=" and ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} others",
        versions=versions(),
        subjects=subjects,
        gallery=shown,
        comparisons=[one for one in interleaved.values() if {one.a.bundle_digest, one.b.bundle_digest} <= digests],
        chosen=(choice.chosen or names[-1]) if len(names) > 1 else "",
        left_out=list(left_out),
    )
    return report, files


def _names(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Names that differ: with the folder before them where they do not."""
    twice = {name for name in names if names.count(name) > 1}
    longer = [f"{path.resolve().parent.name}/{name}" if name in twice else name for name, path in zip(names, paths, strict=True)]
    return [name if longer.count(name) == 1 else f"{name} ({place + 1})" for place, name in enumerate(longer)]


def _without_goldens(subject: Subject, files: Files) -> Subject:
    if subject.source == "run" or subject.gallery is None:
        return subject
    for drawn in subject.gallery.drawn:
        for file in (drawn.images, drawn.difference, drawn.log_spectrum):
            files.pop(file or "", None)
    return subject.model_copy(update={"gallery": None})


def _side_by_side(bundles: Sequence[Bundle], names: Sequence[str], folder: str, choice: Choice) -> tuple[Gallery, Files]:
    """Pictures of all bundles, those from the same noise compared with the first one's."""
    first = bundles[0]
    drawn = []
    for place, (bundle, name) in enumerate(zip(bundles, names, strict=True)):
        alike = bundle.manifest.sample_shape == first.manifest.sample_shape and bundle.plan.stochastic == first.plan.stochastic
        if not choice.draw:
            alike = alike and bundle.golden.header.seed == first.golden.header.seed
            alike = alike and bundle.golden.header.labels == first.golden.header.labels
        reference = names[0] if place and alike else ""
        drawn.append(_drawn(bundle, name, reference, choice) if choice.draw else golden_images(bundle, name, reference))
    return gallery(drawn, folder, "all-", same_noise=all(each.reference for each in drawn[1:]))


def _drawn(bundle: Bundle, name: str, reference: str, choice: Choice) -> Images:
    if bundle.manifest.labelled:
        raise UsageError(
            f"{name} knows classes, and pictures are drawn without one", "leave --draw out: its goldens have classes"
        )
    denoiser, decoder = open_sampler(find_runtime(choice.runtime), bundle)
    values = sample_bundle(denoiser, bundle.plan, seed=0, count=choice.draw, decoder=decoder)
    return Images(name, f"drawn in {choice.runtime}, seed 0", values, reference)
