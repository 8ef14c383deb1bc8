"""Packages that are sound and ask for more than is evaluated, and packages that lie: what is said of each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mil_cases import f32, mb, normal

from edge_sd.errors import EdgeSDError
from edge_sd.quiet import quiet
from edge_sd.runtimes.mil import load_evaluator

with quiet():
    import coremltools
    from coremltools.proto import MIL_pb2, Model_pb2

MakePackage = Callable[..., Path]
MODEL, WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"


def body(x0: Any) -> Any:
    x = mb.linear(x=x0, weight=normal(5, 12), bias=normal(5), name="projected")
    return mb.relu(x=mb.reshape(x=x, shape=[5, 2], name="turned"), name="out")


@pytest.fixture
def package(make_package: MakePackage, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    copy = tmp_path / "x.mlpackage"
    shutil.copytree(make_package(body, [normal(2, 12)]), copy)
    return copy


def edit(package: Path, change: Callable[[Any, Any], None]) -> None:
    """Change the message, given whole, and the one block of operators in it."""
    spec = Model_pb2.Model.FromString((package / MODEL).read_bytes())
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    change(spec, block)
    (package / MODEL).write_bytes(spec.SerializeToString())


def named(block: Any, name: str) -> Any:
    (found,) = (operation for operation in block.operations if operation.outputs[0].name == name)
    return found


def of_type(block: Any, type_: str) -> Any:
    return next(operation for operation in block.operations if operation.type == type_)


def weight(block: Any) -> Any:
    """The constant in weight.bin that lies first."""
    stored = [one for one in block.operations if one.type == "const" and one.attributes["val"].HasField("blobFileValue")]
    return min(stored, key=lambda one: one.attributes["val"].blobFileValue.offset)


def set_dimension(type_: Any, index: int, size: int) -> None:
    type_.tensorType.dimensions[index].constant.size = size


def make_flexible(spec: Any, block: Any) -> None:
    spec.mlProgram.functions["main"].inputs[0].type.tensorType.dimensions[0].unknown.variadic = False


def describe_range(spec: Any, block: Any) -> None:
    spec.description.input[0].type.multiArrayType.shapeRange.sizeRanges.add().upperBound = 4


def describe_image(spec: Any, block: Any) -> None:
    spec.description.input[0].type.imageType.width = 4


def keep_state(spec: Any, block: Any) -> None:
    spec.description.state.add().name = "cache"


def take_state(spec: Any, block: Any) -> None:
    function = spec.mlProgram.functions["main"]
    wrapped = MIL_pb2.ValueType()
    wrapped.CopyFrom(function.inputs[0].type)
    function.inputs[0].type.stateType.wrappedType.CopyFrom(wrapped)


def make_list(spec: Any, block: Any) -> None:
    block.operations[-1].outputs[0].type.listType.SetInParent()


def narrow_float(spec: Any, block: Any) -> None:
    block.operations[-1].outputs[0].type.tensorType.dataType = MIL_pb2.BFLOAT16


def unknown_type(spec: Any, block: Any) -> None:
    block.operations[-1].outputs[0].type.tensorType.dataType = 777


def other_rank(spec: Any, block: Any) -> None:
    block.operations[-1].outputs[0].type.tensorType.rank = 5


def huge(spec: Any, block: Any) -> None:
    set_dimension(block.operations[-1].outputs[0].type, 0, 2**40)


def other_shape(spec: Any, block: Any) -> None:
    set_dimension(block.operations[-1].outputs[0].type, 0, 7)


def other_kind(spec: Any, block: Any) -> None:
    named(block, "out").outputs[0].type.tensorType.dataType = MIL_pb2.INT32


def no_such_value(spec: Any, block: Any) -> None:
    named(block, "out").inputs["x"].arguments[0].name = "nobody"


def made_twice(spec: Any, block: Any) -> None:
    named(block, "turned").outputs[0].name = "projected"


def no_such_output(spec: Any, block: Any) -> None:
    block.outputs[0] = "nobody"


def no_output(spec: Any, block: Any) -> None:
    del block.outputs[:]


def other_opset(spec: Any, block: Any) -> None:
    spec.mlProgram.functions["main"].opset = "CoreML99"


def a_network(spec: Any, block: Any) -> None:
    spec.neuralNetwork.SetInParent()


def missing_argument(spec: Any, block: Any) -> None:
    del named(block, "projected").inputs["weight"]


def two_arguments(spec: Any, block: Any) -> None:
    arguments = named(block, "projected").inputs["weight"].arguments
    arguments.add().CopyFrom(arguments[0])


def text_for_a_tensor(spec: Any, block: Any) -> None:
    value = of_type(block, "const")
    value.attributes["val"].type.tensorType.dataType = MIL_pb2.STRING


def one_number_for_five(spec: Any, block: Any) -> None:
    value = next(one for one in block.operations if one.type == "const" and one.attributes["val"].HasField("immediateValue"))
    value.attributes["val"].immediateValue.tensor.ints.values.append(3)


def a_block_inside(spec: Any, block: Any) -> None:
    named(block, "out").blocks.add()


def elsewhere(name: str) -> Callable[[Any, Any], None]:
    def change(spec: Any, block: Any) -> None:
        weight(block).attributes["val"].blobFileValue.fileName = name

    return change


def at(offset: int) -> Callable[[Any, Any], None]:
    def change(spec: Any, block: Any) -> None:
        weight(block).attributes["val"].blobFileValue.offset = offset

    return change


def in_halves(spec: Any, block: Any) -> None:
    value = weight(block)
    for type_ in (value.attributes["val"].type, value.outputs[0].type):
        type_.tensorType.dataType = MIL_pb2.FLOAT16


def wider(spec: Any, block: Any) -> None:
    value = weight(block)
    for type_ in (value.attributes["val"].type, value.outputs[0].type):
        set_dimension(type_, 0, 6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (make_flexible, "shape of x0 is flexible"),
        (describe_range, "shape of x0 is flexible"),
        (describe_image, "x0 is of imageType"),
        (keep_state, "states cache"),
        (take_state, "x0 is a state"),
        (make_list, "out is of listType"),
        (narrow_float, "data type BFLOAT16"),
        (unknown_type, "out is of "),
        (other_rank, "rank 5 and 2 dimensions"),
        (huge, "more than .* elements"),
        (other_shape, r"relu out cannot be evaluated .spec version 8.*makes float \[5, 2\] and declares float32\[7, 2\]"),
        (other_kind, r"makes float \[5, 2\] and declares int32"),
        (no_such_value, "x of relu out is nobody, which is made by no operator before it"),
        (made_twice, "'projected' is defined twice"),
        (no_such_output, "outputs nobody are made by no operator"),
        (no_output, "outputs"),
        (other_opset, "no block for its opset 'CoreML99'"),
        (a_network, "it is a neuralNetwork"),
        (missing_argument, "linear projected cannot be evaluated.*its weight is missing"),
        (two_arguments, "its weight has 2 values"),
        (text_for_a_tensor, "is text in @model_path"),
        (one_number_for_five, r"should be float32.5. and holds 1 ints"),
        (a_block_inside, "control flow"),
        (elsewhere("@model_path/../../../secret"), "not below the package"),
        (elsewhere("/etc/passwd"), "not below the package"),
        (elsewhere("@model_path//etc/passwd"), "not below the package"),
        (elsewhere("@model_path/weights/other.bin"), "cannot be read"),
        (at(2**50), "at byte"),
        (at(72), "there is no constant at byte 72"),
        (at(7), "at byte 7"),
        (in_halves, "should be float16, the file has float32"),
        (wider, "takes .* bytes, the file has"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_wrong_is_named(change: Callable[[Any, Any], None], match: str, package: Path) -> None:
    load_evaluator(package)
    edit(package, change)
    with pytest.raises(EdgeSDError, match=match) as caught:
        load_evaluator(package)
    assert caught.value.hint


def test_shapes_to_choose_from_are_refused(tmp_path: Path) -> None:
    """As coremltools writes them."""
    with quiet():
        from coremltools.converters.mil.mil import get_new_symbol

        program = mb.program(input_specs=[mb.TensorSpec(shape=(get_new_symbol(), 3))])(lambda x: mb.relu(x=x))
        sizes = (coremltools.RangeDim(1, 4), 3)
        model = coremltools.convert(
            program, convert_to="mlprogram", inputs=[coremltools.TensorType(name="x", shape=sizes)], skip_model_load=True
        )
        model.save(str(tmp_path / "x.mlpackage"))
    with pytest.raises(EdgeSDError, match="flexible"):
        load_evaluator(tmp_path / "x.mlpackage")


def test_a_state_is_refused(make_package: MakePackage, tmp_path: Path) -> None:
    """As coremltools writes it, in a program that counts its calls."""
    with quiet():
        from coremltools.converters.mil.backend.mil.load import load
        from coremltools.converters.mil.mil import types

        specs = [mb.TensorSpec(shape=(2, 3)), mb.StateTensorSpec(shape=(2, 3), dtype=types.fp16)]

        def counting(x: Any, state: Any) -> Any:
            return mb.add(x=x, y=mb.cast(x=mb.read_state(input=state), dtype="fp32"))

        program = mb.program(input_specs=specs, opset_version=coremltools.target.iOS18)(counting)
        (tmp_path / "weights").mkdir()
        spec = load(program, weights_dir=str(tmp_path / "weights"), specification_version=9)
        coremltools.models.utils.save_spec(spec, str(tmp_path / "x.mlpackage"), weights_dir=str(tmp_path / "weights"))
    with pytest.raises(EdgeSDError, match="state"):
        load_evaluator(tmp_path / "x.mlpackage")


# The folder


def test_a_folder_that_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(EdgeSDError, match="not a Core ML package"):
        load_evaluator(tmp_path / "nothing.mlpackage")
    with pytest.raises(EdgeSDError, match=r"Manifest.json cannot be read"):
        load_evaluator(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "nul", '{"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": 3}}}', "[" * 100_000, "\ud800x"],
    ids=["empty", "list", "object", "cut", "number", "deep", "surrogate"],
)
def test_a_manifest_that_cannot_be_read(text: str, package: Path) -> None:
    (package / "Manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(EdgeSDError, match=r"Manifest.json cannot be read"):
        load_evaluator(package)


@pytest.mark.parametrize("path", ["../../x", "/etc/passwd", "com.apple.CoreML/nothing", "", "com.apple.CoreML", "a\0b"])
def test_a_model_elsewhere(path: str, package: Path) -> None:
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = path
    (package / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EdgeSDError, match=r"cannot be read|not below"):
        load_evaluator(package)


def test_weights_that_are_a_folder(package: Path) -> None:
    (package / WEIGHTS).unlink()
    (package / WEIGHTS).mkdir()
    with pytest.raises(EdgeSDError, match="the weights cannot be read"):
        load_evaluator(package)


def test_weights_below_the_threshold_lie_in_the_program(make_package: MakePackage) -> None:
    """Both places are read: few numbers inside, many in weight.bin."""
    few, many = normal(3), normal(4, 3)
    evaluator = load_evaluator(make_package(lambda x0: mb.add(x=mb.matmul(x=x0, y=many), y=few), [normal(2, 4)]))
    x = normal(2, 4)
    (found,) = evaluator({"x0": x}).values()
    np.testing.assert_allclose(found, x.astype(float) @ many + few, rtol=1e-5, atol=f32(1e-6))
