"""Quantized programs in Core ML packages, read back byte by byte: the protobuf by its fields, weight.bin by its layout.

Nothing of what wrote the package, and none of Core ML Tools' readers, takes part in the reading.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_sd.bundle import Bundle
from edge_sd.bundle.manifest import Program
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.export import ExportRequest, TargetOptions, check_export, export_bundle
from edge_sd.export._mil import Held, layer_bits, refusals
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize.checkpoint import QuantizedCheckpoint, quantized_checkpoint
from edge_sd.quantize.form import quantizable_form
from edge_sd.quantize.grid import ActivationGrid, activation_grid, rounded_weight, symmetric_grid, weight_scales
from edge_sd.quantize.layers import layers_of, points_of
from edge_sd.quantize.recipe import LayerRecipe, Recipe, default_layers, described, overridden
from edge_sd.quiet import quiet

MakeCheckpoint = Callable[..., Checkpoint]
MakeQuantized = Callable[..., QuantizedCheckpoint]
IN_FLOAT = "middle.1.block.conv1"


# A quantized checkpoint that nobody calibrated: what is exported is what is in it


@pytest.fixture(scope="session")
def make_quantized(make_checkpoint: MakeCheckpoint) -> MakeQuantized:
    """Bits, groups, a layer whose weights (not its activations) stay in float → a checkpoint, each point on a grid of its own."""

    def make(
        bits: int,
        activations: Any,
        *,
        programs: int = 1,
        overrides: tuple[str, ...] = (),
        in_float: str | None = None,
        group: int | None = None,
        **changes: Any,
    ) -> QuantizedCheckpoint:
        checkpoint = make_checkpoint(**changes)
        model = checkpoint.header.model
        layers = overridden(default_layers(model, bits, activations), overrides)
        if in_float is not None:
            layers[in_float] = layers[in_float].model_copy(update={"bits": None})
        form = quantizable_form(checkpoint.build())
        if group is not None:
            layers = _grouped(form, layers, group)
        recipe = Recipe(model=model, steps=4, starts=tuple(range(programs)), layers=layers)
        for name, layer in layers_of(form).items():
            grid = recipe.layers[name].grid
            if grid is not None:
                weight = layer.weights()
                scales = weight_scales(weight, grid)
                layer.store(rounded_weight(weight, scales, grid), scales, grid)
        random, points = np.random.default_rng(5), points_of(form)
        for name, width in recipe.point_bits(form).items():
            make_grid = symmetric_grid if points[name].symmetric else activation_grid
            points[name].grids = tuple(make_grid(-random.uniform(0.5, 3), random.uniform(0.5, 3), width) for _ in range(programs))
        provenance = Provenance(made_by="quantize")
        return quantized_checkpoint(form, checkpoint, recipe, provenance=provenance, calibration="", blocks=())

    return make


def _grouped(form: SpectralUNet, layers: dict[str, LayerRecipe], group: int) -> dict[str, LayerRecipe]:
    """Groups for the layers whose input channels divide into them."""
    widths = {name: layer.shape[1] for name, layer in layers_of(form).items()}
    fits = {name for name, width in widths.items() if width > group and not width % group}
    return {name: layer.model_copy(update={"group": group}) if name in fits else layer for name, layer in layers.items()}


def exported(checkpoint: QuantizedCheckpoint, folder: Path, system: Any, precision: Any) -> Bundle:
    options = TargetOptions(coreml_os=system, coreml_precision=precision)
    return export_bundle(checkpoint, folder / "x.edgesd", ExportRequest(("coreml",), options, steps=4, goldens=1))


@pytest.fixture(scope="session")
def w8a8(make_quantized: MakeQuantized) -> QuantizedCheckpoint:
    """8 bits but for one layer, two groups of steps; 144 tokens, so that attention's products are quantized, too."""
    return make_quantized(8, 8, programs=2, image_size=24, in_float=IN_FLOAT)


@pytest.fixture(scope="session")
def w4a8(make_quantized: MakeQuantized) -> QuantizedCheckpoint:
    """4 bits in groups of 4 input channels, of convolutions and linear layers; two groups of steps."""
    return make_quantized(4, 8, programs=2, group=4, image_size=24)


CASES = [("w8a8", "iOS17", "fp16"), ("w8a8", "iOS18", "fp32"), ("w4a8", "iOS18", "fp16")]


@dataclass
class Case:
    """One export."""

    checkpoint: QuantizedCheckpoint
    bundle: Bundle
    half: bool

    def program(self, index: int) -> Program:
        return self.bundle.program("coreml", "denoiser" if index == 0 else f"denoiser.{index}")


@pytest.fixture(scope="session", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Both bits, both precisions, functions and separate packages."""
    name, system, precision = request.param
    checkpoint = request.getfixturevalue(name)
    return Case(checkpoint, exported(checkpoint, tmp_path_factory.mktemp("case"), system, precision), precision == "fp16")


# The reader

_BITS = {"INT4": 4, "INT8": 8}
_NUMPY = {"INT8": np.int8, "UINT8": np.uint8, "FLOAT16": np.float16, "FLOAT32": np.float32}


class Package:
    """One function of a package: its operations by output and by input, and the value of any constant argument."""

    def __init__(self, path: Path, function: str) -> None:
        with quiet():
            from coremltools.proto import MIL_pb2, Model_pb2
        self.data_types = MIL_pb2.DataType
        spec = Model_pb2.Model.FromString((path / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
        self.weights = (path / "Data/com.apple.CoreML/weights/weight.bin").read_bytes()
        found = spec.mlProgram.functions[function]
        self.operations = list(found.block_specializations[found.opset].operations)
        self.producer = {output.name: operation for operation in self.operations for output in operation.outputs}

    def of(self, *kinds: str) -> Iterator[Any]:
        return (operation for operation in self.operations if operation.type in kinds)

    def source(self, operation: Any, name: str) -> Any:
        """The operation behind an input; through those that move numbers without changing them."""
        found = self.producer.get(operation.inputs[name].arguments[0].name)
        while found is not None and found.type in ("pad", "reshape", "transpose"):
            found = self.producer.get(found.inputs["x"].arguments[0].name)
        return found

    def users(self, operation: Any) -> list[Any]:
        name = operation.outputs[0].name
        return [
            other for other in self.operations for value in other.inputs.values() if name in {one.name for one in value.arguments}
        ]

    def constant(self, operation: Any, name: str) -> Any:
        """A constant argument, wherever the format keeps it: iOS 16's unpacking operators have theirs among the attributes."""
        if name in operation.attributes:
            return operation.attributes[name]
        if name not in operation.inputs:
            return None
        argument = operation.inputs[name].arguments[0]
        return argument.value if argument.HasField("value") else self.producer[argument.name].attributes["val"]

    def value(self, operation: Any, name: str) -> np.ndarray | None:
        """What a constant argument holds; None where there is none."""
        value = self.constant(operation, name)
        if value is None:
            return None
        tensor = value.type.tensorType
        shape = tuple(dimension.constant.size for dimension in tensor.dimensions)
        kind = self.data_types.Name(tensor.dataType)
        if value.HasField("blobFileValue"):
            return self._blob(value.blobFileValue.offset, kind, shape)
        held = value.immediateValue.tensor
        if kind == "FLOAT32":
            return np.array(held.floats.values, np.float32).reshape(shape)
        return np.frombuffer(held.bytes.values, _NUMPY[kind]).reshape(shape)

    def bits(self, operation: Any, name: str) -> int:
        return _BITS[self.data_types.Name(self.constant(operation, name).type.tensorType.dataType)]

    def _blob(self, offset: int, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        sentinel, _, size, start = struct.unpack_from("<IIQQ", self.weights, offset)
        assert sentinel == 0xDEADBEEF
        data, count = self.weights[start : start + size], int(np.prod(shape))
        if kind != "INT4":
            return np.frombuffer(data, _NUMPY[kind], count).reshape(shape)
        assert size == (count + 1) // 2, "two integers to a byte"
        halves = np.frombuffer(data, np.uint8)
        flat = np.stack([halves & 0xF, halves >> 4], axis=1).reshape(-1)[:count].astype(np.int8)
        return np.where(flat > 7, flat - 16, flat).astype(np.int8).reshape(shape)


def weights_in(package: Package) -> dict[str, Any]:
    """What unpacks each layer's weights; the layer's name with underscores."""
    found = {}
    for operation in package.of("constexpr_blockwise_shift_scale", "constexpr_affine_dequantize"):
        name = operation.outputs[0].name.split("_cast_")[0]
        assert name.startswith("b_model_")
        assert name.endswith("_weight")
        found[name.removeprefix("b_model_").removesuffix("_weight")] = operation
    return found


def packages(case: Case) -> list[Package]:
    programs = [case.program(index) for index in (0, 1)]
    return [Package(case.bundle.path / program.file, program.entry or "main") for program in programs]


def quantized_layers(case: Case) -> dict[str, Any]:
    layers = layers_of(case.checkpoint.build())
    return {name: layer for name, layer in layers.items() if layer.grid is not None}


# What is in the package


def test_every_layers_integers_and_scales_are_the_checkpoints(case: Case) -> None:
    for package in packages(case):
        found = weights_in(package)
        layers = quantized_layers(case)
        assert found.keys() == {name.replace(".", "_") for name in layers}
        for name, layer in layers.items():
            operation = found[name.replace(".", "_")]
            data = "data" if operation.type == "constexpr_blockwise_shift_scale" else "quantized_data"
            codes, scales = package.value(operation, data), package.value(operation, "scale")
            assert codes is not None
            assert scales is not None
            np.testing.assert_array_equal(codes, layer.codes.numpy())
            assert package.bits(operation, data) == (4 if layer.grid.bits <= 4 else 8)
            assert scales.dtype == (np.float16 if case.half else np.float32)
            expected = layer.scales.numpy().astype(scales.dtype)
            np.testing.assert_array_equal(scales.reshape(expected.shape), expected)
            if data == "data":
                assert scales.shape == (*expected.shape, *([1] * (codes.ndim - 2)))
                assert "offset" not in operation.inputs
            else:
                zero = package.value(operation, "zero_point")
                assert zero is not None
                assert not zero.any()
                assert operation.attributes["axis"].immediateValue.tensor.ints.values == [0]
        assert not [operation for operation in package.of("const") if "codes" in operation.outputs[0].name]


def test_some_scales_are_of_groups(w4a8: QuantizedCheckpoint) -> None:
    grouped = [layer.shape for layer in layers_of(w4a8.build()).values() if layer.scales.shape[1] > 1]  # type: ignore[union-attr]
    assert {len(shape) for shape in grouped} == {2, 4}


def canonical(package: Package, operation: Any) -> tuple[float, int]:
    """Scale, and how far the zero point is from the smallest integer: uint8 with 128 is int8 with 0."""
    scale, zero = package.value(operation, "scale"), package.value(operation, "zero_point")
    output = operation if operation.type == "quantize" else package.source(operation, "input")
    signed = package.data_types.Name(output.outputs[0].type.tensorType.dataType) == "INT8"
    assert scale is not None
    return float(scale), (0 if zero is None else int(zero)) + (128 if signed else 0)


def expected_grid(grid: ActivationGrid, half: bool) -> tuple[float, int]:
    return float(np.float16(grid.scale) if half else np.float32(grid.scale)), grid.zero_point


def test_every_points_grid_is_that_of_its_program(case: Case) -> None:
    differ = 0
    for index, package in enumerate(packages(case)):
        operations, checked = weights_in(package), 0
        for name, layer in quantized_layers(case).items():
            (user,) = package.users(operations[name.replace(".", "_")])
            assert user.type in ("conv", "linear")
            before = package.source(user, "x")
            if layer.input.grids:
                assert before.type == "dequantize"
                expected = expected_grid(layer.input.grids[index], case.half)
                assert canonical(package, before) == canonical(package, package.source(before, "input")) == expected
                differ += layer.input.grids[0] != layer.input.grids[1]
                checked += 1
            if layer.output.grids:
                (after,) = package.users(user)
                assert (after.type, canonical(package, after)) == (
                    "quantize",
                    expected_grid(layer.output.grids[index], case.half),
                )
                (taken,) = package.users(after)
                assert (taken.type, canonical(package, taken)) == ("dequantize", canonical(package, after))
                checked += 1
        assert checked > 10
    assert differ > 10


def test_attentions_products_are_of_integers(case: Case) -> None:
    """Keys and values are signed and have no zero point."""
    form = case.checkpoint.build()
    for index, package in enumerate(packages(case)):
        there = {canonical(package, operation) for operation in package.of("quantize")}
        points = {name: point for name, point in points_of(form).items() if point.grids}
        assert {name.rpartition(".")[2] for name in points} >= {"queries", "keys", "values"}
        assert there == {expected_grid(point.grids[index], case.half) for point in points.values()}
        signed = [
            operation
            for operation in package.of("quantize")
            if package.data_types.Name(operation.outputs[0].type.tensorType.dataType) == "INT8"
        ]
        assert signed
        assert all("zero_point" not in operation.inputs for operation in signed)


def test_several_programs_share_their_weights_from_ios_18_on(case: Case) -> None:
    files = {case.program(index).file for index in (0, 1)}
    if case.bundle.program("coreml").options["os"] < "iOS18":
        assert files == {"denoiser.mlpackage", "denoiser.1.mlpackage"}
        return
    assert files == {"programs.mlpackage"}
    first, second = (
        {package.producer[name].outputs[0].name: _offsets(package.producer[name]) for name in package.producer}
        for package in packages(case)
    )
    shared = [name for name in first if first[name] and name in second]
    assert len(shared) >= len(quantized_layers(case))
    assert all(first[name] == second[name] for name in shared)


def _offsets(operation: Any) -> list[int]:
    """Where in weight.bin an operation's constants are."""
    values = [argument.value for value in operation.inputs.values() for argument in value.arguments if argument.HasField("value")]
    values += list(operation.attributes.values())
    return sorted(value.blobFileValue.offset for value in values if value.HasField("blobFileValue"))


def test_nothing_for_a_debugger_is_left_in_a_package(case: Case) -> None:
    for package in case.bundle.path.glob("*.mlpackage"):
        assert {path.name for path in package.iterdir()} == {"Data", "Manifest.json"}


# What is said of it


def test_bits_of_every_layer_with_weights_are_told(case: Case) -> None:
    recipe = case.checkpoint.header.recipe
    known = {name: layer for name, layer in described(recipe.model).items() if layer.kind != "products"}
    for index in (0, 1):
        program = case.program(index)
        found = {layer.layer: layer for layer in program.layers}
        assert found.keys() == known.keys()
        for name, layer in found.items():
            asked = recipe.layers[name]
            assert (layer.weights, layer.requested) == (known[name].weights, asked.bits)
            assert layer.requested_activations == asked.input
            real, width = ("float16", 16) if case.half else ("float32", 32)
            if asked.bits is None:
                assert (name, layer.stored, layer.computed, layer.why) == (IN_FLOAT, width, real, "its weights are in float")
            else:
                assert (layer.stored, layer.why, layer.fell_back) == (asked.bits, "", False)
                assert layer.computed == ("device" if asked.input == 8 else real)
        if case.half:
            assert program.options["scales"].startswith("float16, off by 0.0")
        else:
            assert program.options["scales"] == "float32, exact"


def test_what_core_ml_has_no_room_for_is_said(make_quantized: MakeQuantized, tmp_path: Path) -> None:
    """3 bits are stored in 4, 6 in 8; 16-bit activations are left out, and nothing else is."""
    checkpoint = make_quantized(6, 16, overrides=("down.0.*=3", "conv_in=8"), in_float=IN_FLOAT, gating=False)
    bundle = exported(checkpoint, tmp_path, "iOS18", "fp16")
    found = {layer.layer: layer for layer in bundle.program("coreml").layers}
    package = Package(bundle.path / "denoiser.mlpackage", "main")
    assert not list(package.of("quantize", "dequantize"))
    kinds = {"wide": found["middle.0.block.conv1"], "narrow": found["down.0.block.conv1"], "float": found[IN_FLOAT]}
    assert (kinds["wide"].stored, kinds["narrow"].stored, kinds["float"].stored) == (8, 4, 16)
    assert {layer.computed for layer in found.values()} == {"float16"}
    sixteen = "Core ML has no 16-bit activations: they are in float16"
    assert kinds["wide"].why == kinds["narrow"].why == f"Core ML stores integers in 4 or 8 bits; {sixteen}"
    assert kinds["float"].why == sixteen
    assert (found["conv_in"].why, found["conv_in"].fell_back) == ("", False)
    assert all(layer.fell_back for layer in kinds.values())
    assert len(weights_in(package)) == sum(layer.requested is not None for layer in found.values())


@dataclass
class Given:
    """As much of a source as its layers' bits are told by."""

    state_dict: dict[str, torch.Tensor]
    recipe: Recipe
    name: str = "denoiser"

    @property
    def exported(self) -> "Given":
        return self


@pytest.fixture
def given(make_quantized: MakeQuantized) -> tuple[Any, list[str], list[Held]]:
    """A source, its layers, and a program that holds them all."""
    checkpoint = make_quantized(8, 8, gating=False)
    form = checkpoint.build()
    held = [Held(layer.codes.numpy().copy(), layer.scales.numpy().copy(), 8) for layer in layers_of(form).values()]  # type: ignore[union-attr]
    state = {f"model.{name}": value.clone() for name, value in form.state_dict().items()}
    return Given(state, checkpoint.header.recipe), list(layers_of(form)), held


@pytest.mark.parametrize("change", ["codes", "scales", "missing"])
def test_a_program_with_other_weights_is_never_passed_on(change: str, given: tuple[Any, list[str], list[Held]]) -> None:
    source, names, held = given
    found, off = layer_bits(source, held, half=False)
    assert ([layer.layer for layer in found], off) == (names, 0.0)
    if change == "missing":
        del held[3]
    else:
        values = getattr(held[3], change)
        values.flat[-1] += values.flat[-1] * 1e-6 if change == "scales" else (1 if values.flat[-1] < 0 else -1)
    with pytest.raises(EdgeSDError, match=f"Core ML Tools changed the weights of {names[3]} in the denoiser"):
        layer_bits(source, held, half=False)


def test_layers_of_equal_weights_are_told_of_by_one_constant(given: tuple[Any, list[str], list[Held]]) -> None:
    """Core ML Tools keeps one for all of them."""
    source, names, held = given
    first, second = (names.index(f"middle.0.block.conv{number}") for number in (1, 2))
    for suffix in (".codes", ".scales"):
        source.state_dict[f"model.{names[second]}{suffix}"] = source.state_dict[f"model.{names[first]}{suffix}"]
    del held[second]
    assert len(layer_bits(source, held, half=False)[0]) == len(names)


def test_scales_in_float16_may_be_off_by_its_rounding_alone(given: tuple[Any, list[str], list[Held]]) -> None:
    source, _, held = given
    rounded = [Held(one.codes, one.scales.astype(np.float16), one.bits) for one in held]
    assert 0 < layer_bits(source, rounded, half=True)[1] <= 2**-11
    rounded[0].scales.flat[0] *= 1.01
    with pytest.raises(EdgeSDError, match="changed the weights of conv_in"):
        layer_bits(source, rounded, half=True)


# What is refused before anything is written


@pytest.mark.parametrize(
    ("system", "bits", "activations", "group", "expected"),
    [
        ("iOS17", 4, 8, None, ["4-bit weights need --coreml-os iOS18"]),
        ("iOS17", 3, None, None, ["3-bit weights need --coreml-os iOS18"]),
        ("iOS17", 5, 8, None, []),
        ("iOS17", 8, 8, 4, ["weights whose scales are of groups need --coreml-os iOS18"]),
        ("iOS16", 8, 8, None, ["8-bit activations need --coreml-os iOS17"]),
        ("iOS16", 8, 16, None, []),
        ("iOS16", 8, None, None, []),
        ("iOS16", 4, 8, None, ["4-bit weights need --coreml-os iOS18", "8-bit activations need --coreml-os iOS17"]),
        ("iOS18", 2, 8, 4, []),
    ],
)
def test_what_a_system_cannot_hold_is_named(
    system: str, bits: int, activations: Any, group: int | None, expected: list[str], tiny_checkpoint: Checkpoint
) -> None:
    model = tiny_checkpoint.header.model
    recipe = Recipe(model=model, layers=default_layers(model, bits, activations, group=group))
    assert refusals(recipe, system) == expected


def test_4_bits_for_ios_17_are_refused_by_a_dry_run_and_by_the_export(w4a8: QuantizedCheckpoint, tmp_path: Path) -> None:
    request = ExportRequest(("coreml",), TargetOptions(coreml_os="iOS17"), steps=4, goldens=1)
    (check,) = check_export(w4a8, None, request, tmp_path / "x.edgesd")
    assert check.problems[0] == "4-bit weights need --coreml-os iOS18"
    with pytest.raises(UsageError, match="coreml: 4-bit weights need --coreml-os iOS18"):
        export_bundle(w4a8, tmp_path / "x.edgesd", request)
    assert not list(tmp_path.iterdir())


def test_8_bit_weights_alone_open_on_ios_16(make_quantized: MakeQuantized, tmp_path: Path) -> None:
    bundle = exported(make_quantized(8, None, gating=False), tmp_path, "iOS16", "fp16")
    layers = bundle.program("coreml").layers
    assert {(layer.stored, layer.computed, layer.why) for layer in layers} == {(8, "float16", "")}
    assert len(weights_in(Package(bundle.path / "denoiser.mlpackage", "main"))) == len(layers)
