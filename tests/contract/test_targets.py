"""What every target promises, whichever there are; and what an ONNX program without time looks like."""

from pathlib import Path

import onnx
import pytest

import edge_sd
from edge_sd.bundle import Bundle
from edge_sd.bundle.manifest import Contract
from edge_sd.export import targets
from edge_sd.export.onnx import OPSET
from edge_sd.runnable import Availability

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


@pytest.mark.parametrize("name", list(targets()))
def test_what_it_writes_is_in_the_manifest(name: str, bundle: Bundle) -> None:
    assert targets()[name].available().ok, targets()[name].available()
    file = bundle.program(name).file
    assert (bundle.path / file).exists()
    assert any(entry == file or entry.startswith(f"{file}/") for entry in bundle.manifest.files)


def test_it_writes_nothing_that_the_manifest_does_not_list(bundle: Bundle) -> None:
    written = {path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("*") if path.is_file()}
    assert written == {*bundle.manifest.files, "manifest.json"}


def test_no_file_tells_where_it_was_made(bundle: Bundle) -> None:
    """A bundle goes out into the world; folders and source lines of the machine that exported it do not."""
    here = str(Path(edge_sd.__file__).parents[1]).encode()
    telling = {name for name in bundle.manifest.files if here in (bundle.path / name).read_bytes()}
    assert not telling


# ONNX


@pytest.fixture(scope="module")
def program(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(bundle.path / bundle.program("onnx").file)


def test_onnx_the_checker_passes(program: onnx.ModelProto) -> None:
    onnx.checker.check_model(program, full_check=True)


def test_onnx_the_opset_is_the_one_that_can_be_quantized_later(program: onnx.ModelProto) -> None:
    assert OPSET == 18
    assert [(entry.domain, entry.version) for entry in program.opset_import] == [("", OPSET)]


def test_onnx_the_contract_travels_inside(program: onnx.ModelProto, bundle: Bundle) -> None:
    (inside,) = (entry.value for entry in program.metadata_props if entry.key == "edge_sd.contract")
    contract = bundle.manifest.contract
    assert Contract.model_validate_json(inside) == contract
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
