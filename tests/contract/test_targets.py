"""What every target promises, whichever there are; and what an ONNX program without time looks like."""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edge_sd
from edge_sd.bundle import Bundle
from edge_sd.bundle.contract import METADATA_KEY, Contract
from edge_sd.bundle.manifest import REFERENCE
from edge_sd.checkpoint import load_checkpoint
from edge_sd.decoder import Decoder
from edge_sd.export import Target, TargetOptions, targets
from edge_sd.export._programs import sources
from edge_sd.models.rewrites import REWRITES
from edge_sd.runnable import Availability

PROGRAMS = ("denoiser", "temporal", "decoder")
# What moves values without changing them.
LAYOUT = {"Split", "Slice", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Gather", "Cast"}


@pytest.mark.parametrize("name", list(targets()))
def test_it_says_what_it_is_and_whether_it_works_here(name: str) -> None:
    found = targets()[name]
    assert (found.name, bool(found.about)) == (name, True)
    available = found.available()
    assert isinstance(available, Availability)
    assert available.detail
    assert available.ok or available.remedy


def test_these_are_all_of_them() -> None:
    assert list(targets()) == ["coreml", "executorch", "onnx"]


@pytest.fixture(scope="module", params=list(targets()))
def target(request: pytest.FixtureRequest) -> Target:
    """Each target: one that does not work here fails, it is not passed over."""
    found = targets()[request.param]
    assert found.available().ok, found.available()
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_it_writes_is_in_the_manifest(target: Target, program: str, bundle: Bundle) -> None:
    file = bundle.program(target.name, program).file
    assert (bundle.path / file).exists()
    assert any(entry == file or entry.startswith(f"{file}/") for entry in bundle.manifest.files)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_manifest_says_what_became_of_each_program(target: Target, program: str, bundle: Bundle) -> None:
    found = bundle.program(target.name, program)
    assert found.options
    assert found.placement is not None
    assert found.placement.delegate
    assert found.placement.outside_share is None or 0 <= found.placement.outside_share <= 1
    assert found.memory is not None
    assert min(found.memory.weights_bytes, found.memory.activations_bytes) > 0
    assert found.seconds > 0
    assert found.rewrites == (() if program == "temporal" else target.rewrites)


def test_its_rewrites_are_known_and_named_once(target: Target) -> None:
    assert set(target.rewrites) <= REWRITES.keys()
    assert len(set(target.rewrites)) == len(target.rewrites)


def test_its_check_finds_nothing_against_programs_that_it_exports(target: Target, bundle: Bundle, decoder: Decoder) -> None:
    first = bundle.golden.trajectories[0]
    examples: dict[str, tuple[np.ndarray, ...]] = {
        "denoiser": (first.samples[:1], first.features[:1]),
        "temporal": (bundle.plan.timestep[:1].astype(np.float32),),
        "decoder": (first.final[None],),
    }
    model = load_checkpoint(bundle.path / REFERENCE).build()
    prepared = sources(model, decoder.build(), bundle.manifest.contracts, examples, target.rewrites)
    assert [source.name for source in prepared] == list(PROGRAMS)
    assert target.check(prepared, TargetOptions()) == []


def test_it_writes_nothing_that_the_manifest_does_not_list(bundle: Bundle) -> None:
    written = {path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("*") if path.is_file()}
    assert written == {*bundle.manifest.files, "manifest.json"}


def test_no_file_tells_where_it_was_made(bundle: Bundle) -> None:
    """A bundle goes out into the world; folders and source lines of the machine that exported it do not."""
    places = {Path(edge_sd.__file__).parents[1], sys.prefix, sys.base_prefix, f"{tempfile.gettempdir()}/", bundle.path.parent}
    telling = {
        (name, place)
        for name in (*bundle.manifest.files, "manifest.json")
        for place in map(str, places)
        if place.encode() in (bundle.path / name).read_bytes()
    }
    assert not telling


# The contract inside


def core_ml_spec(file: Path) -> Any:
    from coremltools.proto import Model_pb2

    return Model_pb2.Model.FromString(file.read_bytes())


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of a file, or of everything below a folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path.parent).as_posix(): file.read_bytes() for file in files}


def contracts_inside(target: Target, path: Path) -> list[Contract]:
    """What a program's own metadata says, where its format has any."""
    if target.name == "onnx":
        found = [entry.value for entry in onnx.load(path).metadata_props if entry.key == METADATA_KEY]
        return [Contract.model_validate_json(text) for text in found]
    if target.name == "coreml":
        spec = core_ml_spec(path / "Data" / "com.apple.CoreML" / "model.mlmodel")
        return [Contract.model_validate(found) for found in json.loads(spec.description.metadata.userDefined[METADATA_KEY])]
    return []


def without_contracts(target: Target, path: Path) -> dict[str, bytes]:
    """Everything else that it holds."""
    found = contents(path)
    for name in found:
        if name.endswith(".onnx"):
            model = onnx.load(path)
            kept = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
            del model.metadata_props[:]
            model.metadata_props.extend(kept)
            found[name] = model.SerializeToString(deterministic=True)
        elif name.endswith(".mlmodel"):
            spec = core_ml_spec(path.parent / name)
            del spec.description.metadata.userDefined[METADATA_KEY]
            found[name] = spec.SerializeToString(deterministic=True)
    return found


# A .pte has no room: its contract is the manifest's.
HELD = {"executorch": 0}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_contract_travels_inside_where_there_is_room(target: Target, program: str, bundle: Bundle) -> None:
    inside = contracts_inside(target, bundle.path / bundle.program(target.name, program).file)
    assert inside == [bundle.manifest.contract(program)] * HELD.get(target.name, 1)


@pytest.mark.parametrize("program", PROGRAMS)
def test_another_plan_changes_the_contract_and_nothing_else(target: Target, program: str, bundle: Bundle, tmp_path: Path) -> None:
    """And it writes a new file: the old one may be known by another name, in another bundle."""
    original = bundle.path / bundle.program(target.name, program).file
    path = tmp_path / original.name
    if original.is_dir():
        shutil.copytree(original, path, copy_function=os.link)
    else:
        os.link(original, path)
    before = contents(original)
    other = bundle.manifest.contract().plan.model_copy(update={"solver": "unipc", "steps": 2, "digest": "0" * 64})
    contracts = [contract.model_copy(update={"plan": other}) for contract in bundle.manifest.contracts]
    target.stamp(path, contracts)
    changed = [contract for contract in contracts if contract.program == program]
    assert contracts_inside(target, path) == changed * HELD.get(target.name, 1)
    assert without_contracts(target, path) == without_contracts(target, original)
    assert contents(original) == before
    assert (contents(path) == before) == (HELD.get(target.name) == 0)


# ONNX


@pytest.fixture(scope="module")
def program(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(bundle.path / bundle.program("onnx").file)


def test_onnx_the_checker_passes(program: onnx.ModelProto) -> None:
    onnx.checker.check_model(program, full_check=True)


def test_onnx_the_opset_is_the_one_that_can_be_quantized_later(program: onnx.ModelProto, bundle: Bundle) -> None:
    assert TargetOptions().onnx_opset == 18
    assert [(entry.domain, entry.version) for entry in program.opset_import] == [("", 18)]
    assert bundle.program("onnx").options == {"opset": "18"}


def test_onnx_the_interface_is_the_contracts(program: onnx.ModelProto, bundle: Bundle) -> None:
    contract = bundle.manifest.contract()
    for specs, values in ((contract.inputs, program.graph.input), (contract.outputs, program.graph.output)):
        for spec, value in zip(specs, values, strict=True):
            shape = tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
            assert (value.name, shape) == (spec.name, spec.shape)
            assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_onnx_no_program_embeds_time(program: onnx.ModelProto) -> None:
    assert not {node.op_type for node in program.graph.node} & {"Sin", "Cos"}
    assert not [weight.name for weight in program.graph.initializer if "temporal" in weight.name]


def test_onnx_time_features_are_added_or_multiplied_as_they_come(program: onnx.ModelProto) -> None:
    """No time MLP and no linear layer of a block: from the input, through layout alone, to the first arithmetic."""
    open_ends, first = {"time_features"}, set()
    for node in program.graph.node:  # in topological order
        if open_ends & set(node.input):
            if node.op_type in LAYOUT:
                open_ends |= set(node.output)
            else:
                first.add(node.op_type)
    assert first
    assert first <= {"Add", "Mul"}
