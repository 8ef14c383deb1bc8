"""Reading and writing a bundle: the folder NAME.edgesd/ that travels to a device."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edge_sd.bundle.contract import PlanSummary
from edge_sd.bundle.golden import Golden, load_golden
from edge_sd.bundle.manifest import GOLDEN, MANIFEST, PLAN, FileEntry, Manifest, Program
from edge_sd.diffusion.plan import Plan, load_plan, refuse_other_process
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import model_text, new_folder, read_model, sha256, write_model

SUFFIX = ".edgesd"
_AGAIN = "copy or export the bundle again"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose every byte has been checked against its manifest."""

    path: Path
    manifest: Manifest
    plan: Plan
    golden: Golden

    def program(self, target: str, name: str = "denoiser") -> Program:
        """Find a program.

        Raises:
            EdgeSDError: the bundle was not exported for that target.
        """
        for program in self.manifest.programs:
            if (program.target, program.name) == (target, name):
                return program
        targets = ", ".join(sorted({program.target for program in self.manifest.programs}))
        raise EdgeSDError(f"{self.path} holds no {name} for {target}, only for {targets}", f"edge-sd export --target {target}")


def is_bundle(path: Path) -> bool:
    """Whether a path is, or is called, a bundle: then whoever opens it says what is wrong with it."""
    return path.suffix == SUFFIX or (path / MANIFEST).is_file()


def open_bundle(path: Path) -> Bundle:
    """Open a bundle and check it: schema, hashes, plan and goldens.

    Raises:
        UsageError: it is not a bundle.
        EdgeSDError: a file is missing, changed or foreign; it is named.
    """
    if not (path / MANIFEST).is_file():
        raise UsageError(f"{path} is not a bundle: it has no {MANIFEST}", "give a folder that edge-sd export wrote")
    manifest = read_model(Manifest, path / MANIFEST)
    # To the byte: where a flipped bit leaves JSON that means the same, the copy is damaged all the same.
    if manifest.digest != manifest.computed_digest() or (path / MANIFEST).read_bytes() != model_text(manifest).encode():
        raise EdgeSDError(f"{path}: {MANIFEST} has changed since it was exported", _AGAIN)
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file() or file.is_symlink():
            raise EdgeSDError(f"{path}: {name} is missing", _AGAIN)
        if file.stat().st_size != entry.bytes or sha256(file) != entry.sha256:
            raise EdgeSDError(f"{path}: {name} has changed since it was exported (its SHA-256 differs)", _AGAIN)
    plan = load_plan(path / PLAN)
    check_plan(path, manifest, plan)
    shapes = {contract.program: contract.outputs[0].shape for contract in manifest.contracts}
    image = shapes["decoder"][1:] if "decoder" in shapes else None
    width = manifest.contract().inputs[1].shape[1]
    golden = load_golden(path / GOLDEN, len(plan), manifest.sample_shape, width, image)  # type: ignore[arg-type]
    return Bundle(path, manifest, plan, golden)


def check_plan(path: Path, manifest: Manifest, plan: Plan) -> None:
    """Refuse a plan that is not one of this bundle's model.

    Raises:
        EdgeSDError: another schedule, another prediction, or rows of another width.
    """
    refuse_other_process(plan, manifest.noise_schedule, manifest.prediction, path)
    features = 0 if manifest.labelled else manifest.contract().inputs[1].shape[1]
    if plan.header.feature_width != features:
        raise EdgeSDError(f"{path}: the plan has {plan.header.feature_width} time features, the program takes {features}", _AGAIN)
    if any(contract.plan != PlanSummary.of(plan) for contract in manifest.contracts):
        raise EdgeSDError(f"{path}: the contracts are of another plan than {PLAN}", _AGAIN)


def write_bundle(path: Path, fill: Callable[[Path], Manifest], *, overwrite: bool) -> Bundle:
    """Write a bundle as a whole or not at all.

    Args:
        fill: writes everything but the manifest into the folder it is given, and returns the manifest (see `file_entries`).
    """
    if path.suffix != SUFFIX:
        raise UsageError(f"a bundle's name ends in {SUFFIX}, unlike {path.name}", f"-o {path.name}{SUFFIX}")
    if overwrite and path.exists() and not (path / MANIFEST).exists():
        raise UsageError(f"{path} exists and is no bundle; it will not be replaced", "choose another -o")
    with new_folder(path, overwrite=overwrite) as folder:
        write_model(folder / MANIFEST, fill(folder).sealed())
        bundle = open_bundle(folder)
    return replace(bundle, path=path)


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Hash every file below a folder, by its path inside it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): FileEntry(sha256=sha256(path), bytes=path.stat().st_size) for path in files}
