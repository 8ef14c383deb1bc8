"""The bundle on disk: it comes back whole or is refused with the name of what is wrong, and is written whole or not at all."""

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from damage import reseal
from edge_sd.bundle import Golden, Manifest, Trajectory, file_entries, open_bundle, trace, write_bundle
from edge_sd.bundle.contract import Contract
from edge_sd.bundle.manifest import CARD, GOLDEN, MANIFEST, PLAN, REFERENCE
from edge_sd.checkpoint import Checkpoint
from edge_sd.diffusion import SCHEDULES, compile_plan
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.export import ExportRequest, Source, Target, TargetOptions, export_bundle, targets
from edge_sd.files import write_model
from edge_sd.runnable import Availability
from edge_sd.runtimes import find_runtime

SOON_FULL = 320  # kB: the weights and the trajectories, and not another program
FILES = (CARD, GOLDEN, PLAN, REFERENCE, "denoiser.onnx")
MakeDisk = Callable[[int], Path]


def flip(file: Path, place: int) -> None:
    """Change one bit of one byte."""
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest as somebody with a text editor would."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    change(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def export_without_targets(checkpoint: Checkpoint, path: Path, *, seed: int = 0, overwrite: bool = False) -> None:
    """A bundle for torch alone, in a tenth of a second."""
    export_bundle(checkpoint, path, ExportRequest((), steps=4, seed=seed), overwrite=overwrite)


@pytest.fixture(scope="module")
def bare(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for torch alone, for tests that open one very often."""
    path = tmp_path_factory.mktemp("bare") / "bare.edgesd"
    export_without_targets(tiny_checkpoint, path)
    return path


# Coming back


def test_a_bundle_comes_back_with_everything_that_was_put_in(tiny_bundle: Path, tiny_checkpoint: Checkpoint) -> None:
    bundle = open_bundle(tiny_bundle)
    manifest, header = bundle.manifest, tiny_checkpoint.header
    assert (manifest.model, manifest.noise_schedule, manifest.prediction) == (
        header.model,
        header.noise_schedule,
        header.prediction,
    )
    assert manifest.weights_digest == header.digest
    assert set(manifest.files) == set(FILES)
    assert (bundle.program("torch").file, bundle.program("onnx").file) == (REFERENCE, "denoiser.onnx")
    plan = compile_plan(header.noise_schedule, 4, prediction=header.prediction)
    for name, column in plan.columns.items():
        np.testing.assert_array_equal(bundle.plan.columns[name], column)
    session = find_runtime("torch").load(bundle)
    assert (bundle.golden.header.seed, bundle.golden.header.labels, len(bundle.golden.trajectories)) == (5, (), 2)
    for index, trajectory in enumerate(bundle.golden.trajectories):
        again = trace(bundle.plan, session, 5, index)
        np.testing.assert_array_equal(again.samples, trajectory.samples)
        np.testing.assert_array_equal(again.predictions, trajectory.predictions)
        np.testing.assert_array_equal(again.final, trajectory.final)
        np.testing.assert_array_equal(again.features, trajectory.features)
        assert trajectory.image is None


def test_a_bundle_may_be_moved(copied: Path, tmp_path: Path) -> None:
    moved = copied.rename(tmp_path / "elsewhere.edgesd")
    assert open_bundle(moved).manifest.name == "tiny"


def test_a_program_that_is_not_there(tiny_bundle: Path) -> None:
    with pytest.raises(EdgeSDError, match=r"no denoiser for coreml, only for onnx, torch .try: edge-sd export --target coreml"):
        open_bundle(tiny_bundle).program("coreml")


# Damage


@pytest.mark.parametrize("place", [0, 0.5, 1])
@pytest.mark.parametrize("name", FILES)
def test_one_bit_of_a_file(name: str, place: float, copied: Path) -> None:
    flip(copied / name, int(place * ((copied / name).stat().st_size - 1)))
    with pytest.raises(EdgeSDError, match=f"{name} has changed since it was exported"):
        open_bundle(copied)


def test_one_bit_of_the_manifest(bare: Path) -> None:
    """Of every third byte, white space too."""
    file = bare / MANIFEST
    data = file.read_bytes()
    for place in range(0, len(data), 3):
        flip(file, place)
        with pytest.raises(EdgeSDError):
            open_bundle(bare)
        file.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing(name: str, copied: Path) -> None:
    (copied / name).unlink()
    with pytest.raises(EdgeSDError, match=f"{name} is missing"):
        open_bundle(copied)


@pytest.mark.parametrize("kept", [0, 0.5, 1])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_cut_short(name: str, kept: float, copied: Path) -> None:
    data = (copied / name).read_bytes()
    (copied / name).write_bytes(data[: int(kept * (len(data) - 1))])
    with pytest.raises(EdgeSDError, match=f"{name} has changed"):
        open_bundle(copied)


@pytest.mark.parametrize("name", FILES)
def test_a_link_in_place_of_a_file(name: str, copied: Path, tmp_path: Path) -> None:
    """Its bytes are right, but they would not travel with the folder."""
    (copied / name).rename(tmp_path / "outside")
    (copied / name).symlink_to(tmp_path / "outside")
    with pytest.raises(EdgeSDError, match=name):
        open_bundle(copied)


@pytest.mark.parametrize("kept", [0, 1, 700])
def test_a_manifest_that_was_cut_short(kept: int, copied: Path) -> None:
    (copied / MANIFEST).write_bytes((copied / MANIFEST).read_bytes()[:kept])
    with pytest.raises(EdgeSDError, match=r"manifest\.json is not a valid Manifest"):
        open_bundle(copied)


@pytest.mark.parametrize("kind", ["nothing", "file", "empty folder", "folder without manifest"])
def test_what_is_no_bundle(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.edgesd"
    if kind == "file":
        path.write_text("{}")
    elif kind != "nothing":
        path.mkdir()
    if kind == "folder without manifest":
        (path / PLAN).touch()
    with pytest.raises(UsageError, match=r"x\.edgesd is not a bundle"):
        open_bundle(path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "..\\x", "C:x", "./README.md", "a//b", "", "."])
def test_a_manifest_that_names_a_path_outside(name: str, copied: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"][CARD]

    edit(copied, change)
    (copied.parent / "x").write_bytes((copied / CARD).read_bytes())
    with pytest.raises(EdgeSDError, match=r"manifest\.json|is missing"):
        open_bundle(copied)


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000 + "b", "a\0b", "README.md/x"])
def test_a_manifest_that_names_a_path_that_no_disk_can_hold(name: str, copied: Path) -> None:
    edit(copied, lambda manifest: manifest["files"].update({name: manifest["files"][CARD]}))
    with pytest.raises(EdgeSDError, match=r"tiny\.edgesd"):
        open_bundle(copied)


def test_a_program_in_a_file_that_is_not_listed(copied: Path) -> None:
    edit(copied, lambda manifest: manifest["programs"][1].update(file="other.onnx"))
    with pytest.raises(EdgeSDError, match=r"other\.onnx is not among its files"):
        open_bundle(copied)


@pytest.mark.parametrize(("version", "remedy"), [(4, "newer edge-sd: pip install --upgrade edge-sd"), (2, "make it again")])
def test_another_schema_is_refused_with_a_hint(version: int, remedy: str, copied: Path) -> None:
    """Even where its fields are not those of today: that is the point of the number."""
    edit(copied, lambda manifest: (manifest.update(schema_version=version, novelty=[]), manifest.pop("contracts")))
    complaint = rf"manifest\.json has schema version {version}, this edge-sd reads version 3 .try: .*{remedy}"
    with pytest.raises(EdgeSDError, match=complaint):
        open_bundle(copied)


def change_contracts(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the contracts, and seal the manifest again as whoever had meant it would."""
    edit(bundle, lambda manifest: change(manifest))
    values = json.loads((bundle / MANIFEST).read_text())
    write_model(bundle / MANIFEST, Manifest.model_validate(values).sealed())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda contracts: contracts.clear(), r"contracts of \[\], not one of each program"),
        (lambda contracts: contracts.append(contracts[0]), "not one of each program"),
        (lambda contracts: contracts[0].update(program="temporal"), "a temporal does not take"),
        (lambda contracts: contracts[0].update(program="upscaler"), "program"),
        (lambda contracts: contracts[0]["inputs"].reverse(), "a denoiser does not take"),
        (lambda contracts: contracts[0]["outputs"].clear(), "a denoiser does not take .* and return"),
        (lambda contracts: contracts[0]["inputs"][0].update(name="x"), "a denoiser does not take"),
        (lambda contracts: contracts[0]["inputs"][0]["shape"].pop(), "a denoiser does not take"),
        (lambda contracts: contracts[0]["inputs"][0].update(dtype="float64"), r"inputs\.0\.dtype"),
        (lambda contracts: contracts[0]["plan"].update(digest="0"), r"plan\.digest"),
    ],
)
def test_contracts_that_are_none(change: Callable[[list[Any]], Any], complaint: str, copied: Path) -> None:
    edit(copied, lambda manifest: change(manifest["contracts"]))
    with pytest.raises(EdgeSDError, match=rf"manifest\.json is not a valid Manifest.*{complaint}"):
        open_bundle(copied)


def test_a_program_without_a_contract(copied: Path) -> None:
    edit(copied, lambda manifest: manifest["programs"][1].update(name="decoder"))
    with pytest.raises(EdgeSDError, match="programs without a contract: decoder"):
        open_bundle(copied)


def test_classes_without_the_program_that_makes_their_rows(copied: Path) -> None:
    edit(copied, lambda manifest: manifest["model"].update(num_classes=3))
    with pytest.raises(EdgeSDError, match="a class-conditional bundle needs the program temporal"):
        open_bundle(copied)


@pytest.mark.parametrize("change", [{"solver": "ddim"}, {"steps": 5}, {"timesteps": [1.0]}, {"digest": "0" * 64}])
def test_a_contract_of_another_plan(change: dict[str, Any], copied: Path) -> None:
    change_contracts(copied, lambda manifest: manifest["contracts"][0]["plan"].update(change))
    with pytest.raises(EdgeSDError, match=r"the contracts are of another plan than plan\.safetensors"):
        open_bundle(copied)


def test_a_plan_of_another_schedule(copied: Path) -> None:
    bundle = open_bundle(copied)
    compile_plan(SCHEDULES["linear"], 4, prediction="v").with_features(bundle.plan.features).save(copied / PLAN)
    reseal(copied)
    with pytest.raises(EdgeSDError, match="the plan is of another schedule or prediction"):
        open_bundle(copied)


def test_a_plan_with_too_few_features(copied: Path) -> None:
    bundle = open_bundle(copied)
    bundle.plan.with_features(bundle.plan.features[:, :-1]).save(copied / PLAN)
    reseal(copied)
    with pytest.raises(EdgeSDError, match="time features, the program takes"):
        open_bundle(copied)


def test_a_plan_of_other_rows_than_the_contracts(copied: Path) -> None:
    """Of the model's own schedule, as many steps, and not the one that was exported."""
    bundle = open_bundle(copied)
    header = bundle.manifest
    other = compile_plan(header.noise_schedule, 4, prediction=header.prediction, spacing="leading", solver="ddim")
    other.with_features(bundle.plan.features).save(copied / PLAN)
    reseal(copied)
    with pytest.raises(EdgeSDError, match=r"the contracts are of another plan than plan\.safetensors"):
        open_bundle(copied)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["samples", "predictions", "final", "features"])
def test_a_golden_value_that_is_not_finite(field: str, bad: float, copied: Path) -> None:
    golden = open_bundle(copied).golden
    getattr(golden.trajectories[1], field).flat[7] = bad
    golden.save(copied / GOLDEN)
    reseal(copied)
    with pytest.raises(EdgeSDError, match=rf"golden\.safetensors: tensor 1\.{field} holds a NaN or an infinity"):
        open_bundle(copied)


def _drop_a_step(golden: Golden) -> tuple[Trajectory, ...]:
    return tuple(replace(one, samples=one.samples[:-1], predictions=one.predictions[:-1]) for one in golden.trajectories)


def _halve(golden: Golden) -> tuple[Trajectory, ...]:
    return tuple(
        replace(one, samples=one.samples[..., ::2], predictions=one.predictions[..., ::2]) for one in golden.trajectories
    )


def _drop_a_feature(golden: Golden) -> tuple[Trajectory, ...]:
    return tuple(replace(one, features=one.features[:, 1:]) for one in golden.trajectories)


def _decode(golden: Golden) -> tuple[Trajectory, ...]:
    """An image, in a bundle that has no decoder."""
    return tuple(replace(one, image=one.final) for one in golden.trajectories)


@pytest.mark.parametrize("change", [_drop_a_step, _halve, _drop_a_feature, _decode, lambda golden: ()])
def test_goldens_that_do_not_fit_the_plan(change: Callable[[Golden], tuple[Trajectory, ...]], copied: Path) -> None:
    golden = open_bundle(copied).golden
    Golden(golden.header, change(golden)).save(copied / GOLDEN)
    reseal(copied)
    with pytest.raises(EdgeSDError, match=r"golden\.safetensors does not hold float32 trajectories of 4 steps"):
        open_bundle(copied)


def test_labels_that_are_not_one_a_trajectory(copied: Path) -> None:
    golden = open_bundle(copied).golden
    Golden(golden.header.model_copy(update={"labels": (0,)}), golden.trajectories).save(copied / GOLDEN)
    reseal(copied)
    with pytest.raises(EdgeSDError, match=r"golden\.safetensors has 1 labels for 2 trajectories"):
        open_bundle(copied)


# Being written


def test_a_bundle_that_exists_is_replaced_only_when_asked(copied: Path, tiny_checkpoint: Checkpoint) -> None:
    before = contents(copied)
    with pytest.raises(UsageError, match=r"tiny\.edgesd exists .try: give --overwrite"):
        export_without_targets(tiny_checkpoint, copied, seed=6)
    assert contents(copied) == before
    export_without_targets(tiny_checkpoint, copied, seed=6, overwrite=True)
    assert open_bundle(copied).golden.header.seed == 6
    assert not (copied / "denoiser.onnx").exists()
    assert [path.name for path in copied.parent.iterdir()] == [copied.name]


@pytest.mark.parametrize("kind", ["file", "empty folder", "folder"])
def test_what_is_no_bundle_is_never_replaced(kind: str, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "photos.edgesd"
    if kind == "file":
        path.write_text("mine")
    else:
        path.mkdir()
    if kind == "folder":
        (path / "holiday.jpg").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"photos\.edgesd exists and is no bundle"):
        export_without_targets(tiny_checkpoint, path, overwrite=True)
    assert contents(tmp_path) == before
    assert path.exists()


@pytest.mark.parametrize("name", ["student", "student.onnx", "student.edgesd.zip"])
def test_a_name_that_is_none_of_a_bundle(name: str, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"a bundle's name ends in \.edgesd, unlike {name}"):
        export_without_targets(tiny_checkpoint, tmp_path / name)
    assert not list(tmp_path.iterdir())


class Failing(Target):
    """Writes half a program and gives up."""

    name = "failing"
    about = "fails"
    rewrites = ()

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def available(self) -> Availability:
        return Availability(True, "always")

    def check(self, sources: Sequence[Source], options: TargetOptions) -> list[str]:
        return []

    def export(self, sources: Sequence[Source], options: TargetOptions, folder: Path) -> NoReturn:
        (folder / "half.bin").write_bytes(b"half")
        raise self.error

    def stamp(self, file: Path, contracts: Sequence[Contract]) -> None:
        pass


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("error", [RuntimeError("no"), EdgeSDError("no", "yes"), KeyboardInterrupt()])
def test_a_failing_export_leaves_all_as_it_was(
    error: BaseException, old: bool, tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.edgesd"
    if old:
        export_without_targets(tiny_checkpoint, path)
    before = contents(tmp_path)
    monkeypatch.setitem(targets(), "failing", Failing(error))
    with pytest.raises(type(error)):
        export_bundle(tiny_checkpoint, path, ExportRequest(("failing",), steps=4), overwrite=True)
    assert contents(tmp_path) == before
    assert path.exists() == old


def test_a_bundle_that_cannot_be_opened_takes_no_old_ones_place(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.edgesd"
    shutil.copytree(tiny_bundle, path)

    def fill(folder: Path) -> Manifest:
        (folder / CARD).write_text("all that there is")
        manifest = Manifest.model_validate_json((tiny_bundle / MANIFEST).read_bytes())
        return manifest.model_copy(update={"files": file_entries(folder)})

    with pytest.raises(EdgeSDError):
        write_bundle(path, fill, overwrite=True)
    assert contents(path) == contents(tiny_bundle)


# The first disk is full before the weights are written, the second before the ONNX program is.
@pytest.mark.parametrize(("size", "target_names"), [(128, ()), (SOON_FULL, ("onnx",))])
def test_a_full_disk_is_named_and_nothing_is_left(
    size: int, target_names: tuple[str, ...], tiny_checkpoint: Checkpoint, make_disk: MakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the forecast said: others write to a disk too."""
    monkeypatch.setattr("edge_sd.export._export.refuse_full_disk", lambda out, needed: None)
    disk, stages = make_disk(size), list[str]()
    with pytest.raises(EdgeSDError, match=r"no space left on the disk of .*x\.edgesd"):
        export_bundle(tiny_checkpoint, disk / "x.edgesd", ExportRequest(target_names, steps=4), observe=stages.append)
    assert ("onnx" in stages) == ("onnx" in target_names)
    assert not list(disk.iterdir())


def test_a_full_disk_is_no_fault_of_the_program(
    tiny_checkpoint: Checkpoint, make_disk: MakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Core ML Tools copies a package into its place, and its error is of another kind."""
    monkeypatch.setattr("edge_sd.export._export.refuse_full_disk", lambda out, needed: None)
    disk = make_disk(SOON_FULL)
    with pytest.raises(EdgeSDError, match=r"cannot write the Core ML package of the denoiser: .*No space left on device"):
        export_bundle(tiny_checkpoint, disk / "x.edgesd", ExportRequest(("coreml",), steps=4))
    assert not list(disk.iterdir())


def test_a_disk_that_will_be_full_is_named_before_anything_long(tiny_checkpoint: Checkpoint, make_disk: MakeDisk) -> None:
    disk, stages = make_disk(SOON_FULL), list[str]()
    with pytest.raises(EdgeSDError, match=r"no room on the disk of .*x\.edgesd: the bundle needs about .* MiB are free"):
        export_bundle(tiny_checkpoint, disk / "x.edgesd", ExportRequest(("onnx",), steps=4), observe=stages.append)
    assert "onnx" not in stages
    assert not list(disk.iterdir())


def test_a_full_disk_leaves_the_old_bundle(tiny_checkpoint: Checkpoint, make_disk: MakeDisk) -> None:
    disk = make_disk(320)
    export_without_targets(tiny_checkpoint, disk / "x.edgesd")
    before = contents(disk)
    with pytest.raises(EdgeSDError, match="no space left"):
        export_without_targets(tiny_checkpoint, disk / "x.edgesd", seed=1, overwrite=True)
    assert contents(disk) == before
    open_bundle(disk / "x.edgesd")


# Anything else that a file can say

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=300)
    | st.sampled_from(["../x", "/", "torch", PLAN]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=300), inner, max_size=3),
    max_leaves=5,
)


def mutate(value: Any, data: st.DataObject) -> Any:
    """Change a JSON value at one place: replace, remove, rename, repeat or cut."""
    if isinstance(value, dict | list) and value and data.draw(st.integers(0, 9)) > 1:
        key = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        value[key] = mutate(value[key], data)
        return value
    if isinstance(value, dict) and value:
        key = data.draw(st.sampled_from(sorted(value)))
        taken = value.pop(key)
        if data.draw(st.booleans()):
            value[data.draw(st.text(max_size=300))] = taken
        return value
    if isinstance(value, list) and value:
        return data.draw(st.sampled_from([value[:-1], [], value * 2, value[::-1]]))
    return data.draw(json_values)


def open_or_refuse(path: Path) -> None:
    """Nothing but an `EdgeSDError` may come out, whatever is asked of what did open."""
    try:
        bundle = open_bundle(path)
        for target in ("torch", "onnx", "coreml"):
            bundle.program(target)
    except EdgeSDError as error:
        assert error.message  # noqa: PT017 (an error may come, it need not)


@settings(max_examples=2000)
@given(data=st.data())
def test_2000_mutated_manifests_raise_nothing_but_our_errors(data: st.DataObject, bare: Path) -> None:
    original = (bare / MANIFEST).read_text()
    manifest = json.loads(original)
    for _ in range(data.draw(st.integers(1, 3))):
        manifest = mutate(manifest, data)
    try:
        (bare / MANIFEST).write_text(json.dumps(manifest))
        open_or_refuse(bare)
        with contextlib.suppress(ValidationError):  # and with a digest that fits, where it is a manifest at all
            write_model(bare / MANIFEST, Manifest.model_validate_json(json.dumps(manifest)).sealed())
            open_or_refuse(bare)
    finally:
        (bare / MANIFEST).write_text(original)


@settings(max_examples=1000)
@given(data=st.data())
def test_1000_mutated_tensor_files_raise_nothing_but_our_errors(data: st.DataObject, bare: Path) -> None:
    """The manifest agrees with them, as it would if whoever changed them had meant to."""
    name = data.draw(st.sampled_from([PLAN, GOLDEN]))
    original = (bare / name).read_bytes()
    head = bytearray(original[: original.index(b"}}") + 2] if b"}}" in original else original[:200])
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, len(head) - 1), st.integers(0, 255)), min_size=1, max_size=3)):
        head[place] = byte
    word = data.draw(st.sampled_from([(b"", b""), (b'"F32"', b'"BF16"'), (b'"F64"', b'"F16"'), (b'"F64"', b'"F8_E4M3"')]))
    (bare / name).write_bytes(bytes(head).replace(*word) + original[len(head) :])
    try:
        reseal(bare)
        open_or_refuse(bare)
    finally:
        (bare / name).write_bytes(original)
        reseal(bare)
