"""What is done to a quantized graph before it is written: nothing that changes a number, and bits that are told as they are."""

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.utils import Extractor
from torch import Tensor, nn

from edge_sd.evaluation.metrics import snr_db
from edge_sd.export import Source, TargetOptions, targets
from edge_sd.export._qdq import finish, integer_layers, layer_of, least_opset, stored_bits, weights_of
from edge_sd.models import ModelConfig
from edge_sd.quantize.grid import ActivationGrid, WeightGrid, activation_grid, rounded_weight, weight_scales
from edge_sd.quantize.layers import layers_of, quantizable
from edge_sd.quantize.recipe import LayerRecipe, Recipe
from edge_sd.quiet import quiet

# Each way there is: computed with integers or in float, of 4 bits or 8, with and without a bias.
LAYERS: dict[str, LayerRecipe] = {
    "first": LayerRecipe(bits=4, input=8, output=8),
    "skip": LayerRecipe(bits=4),
    "eight": LayerRecipe(bits=8, input=8, output=8),
    "eight_float": LayerRecipe(bits=8),
    "wide": LayerRecipe(bits=8, input=16, output=16),
    "wide_four": LayerRecipe(bits=4, input=16, output=16),
    "unquantized": LayerRecipe(bits=None),
    "line": LayerRecipe(bits=4, input=8),
    "line_eight": LayerRecipe(bits=8, input=8),
    "line_without": LayerRecipe(bits=4, input=8),
    "line_float": LayerRecipe(bits=4),
}
LINES = [name for name in LAYERS if name.startswith("line")]


class Chain(nn.Module):
    """All of them, one after the other; linear layers on tokens."""

    def __init__(self) -> None:
        super().__init__()
        for name in LAYERS:
            if name in LINES:
                setattr(self, name, nn.Linear(8, 8, bias=name != "line_without"))
            else:
                setattr(self, name, nn.Conv2d(8, 8, 1 if name == "skip" else 3, padding=0 if name == "skip" else 1))

    def forward(self, x: Tensor) -> Tensor:
        for name in LAYERS:
            if name == LINES[0]:
                x = x.flatten(2).transpose(1, 2).flatten(0, 1)
            x = torch.tanh(getattr(self, name)(x)) * 2
        return x


class Program(nn.Module):
    """As the denoiser's program holds its model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor) -> Tensor:
        out: Tensor = self.model(sample)
        return out


def grid_of(bits: int) -> ActivationGrid:
    return activation_grid(-2.1, 2.1, bits)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe(model=ModelConfig(image_size=16, width=32), layers=LAYERS)


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    chain = quantizable(Chain().requires_grad_(False))
    for name, layer in layers_of(chain).items():
        wanted = LAYERS[name]
        for point, bits in ((layer.input, wanted.input), (layer.output, wanted.output)):
            point.grids = () if bits is None else (grid_of(bits),)
        grid: WeightGrid | None = wanted.grid
        if grid is not None:
            assert layer.weight is not None
            scales = weight_scales(layer.weight, grid)
            layer.store(rounded_weight(layer.weight, scales, grid), scales, grid)
    return Program(chain).eval()


SAMPLE = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def before(program: Program, recipe: Recipe) -> Any:
    """As torch.onnx writes it."""
    assert least_opset(recipe) == 21
    with quiet(), torch.no_grad():
        exported = torch.export.export(program, (SAMPLE,))
        found = torch.onnx.export(
            exported, (SAMPLE,), dynamo=True, opset_version=21, input_names=["sample"], output_names=["out"], verbose=False
        )
    assert found is not None
    return found.model_proto


@pytest.fixture(scope="module")
def after(before: Any, recipe: Recipe) -> Any:
    model = copy.deepcopy(before)
    finish(model, recipe)
    onnx.checker.check_model(model)
    return model


def run(model: Any, x: np.ndarray, *, optimized: bool, save: str = "") -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = save
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    out: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return out


# Nothing changes


def test_no_number_changes(before: Any, after: Any, program: Program) -> None:
    """Kernel by kernel as written. Linear layers' biases become integers of the product's scale, half a step of it at most."""
    x = SAMPLE.numpy()
    written, finished = (run(part, x, optimized=False) for part in (convolutions_of(before), convolutions_of(after)))
    np.testing.assert_array_equal(written, finished)
    written, finished = run(before, x, optimized=False), run(after, x, optimized=False)
    assert snr_db(written, finished) > 45  # a step at ties
    with torch.no_grad():
        simulated = program(SAMPLE).numpy()
    assert simulated.std() > 0.1
    assert snr_db(simulated, written) > 30


def convolutions_of(model: Any) -> Any:
    """The graph as far as the first linear layer."""
    (end,) = (node.output[0] for node in model.graph.node if node.op_type == "Gemm" and "line.codes" in ancestors(model, node))
    (node,) = (node for node in model.graph.node if end in node.output)
    return Extractor(onnx.shape_inference.infer_shapes(model)).extract_model(["sample"], [node.input[0]])


def ancestors(model: Any, node: Any) -> str:
    """Names of what goes into a node's second input, through whatever lies between."""
    maker, found, name = {value: node for node in model.graph.node for value in node.output}, "", node.input[1]
    while name in maker:
        name = maker[name].input[0]
        found += name
    return found


@pytest.mark.parametrize("name", [name for name in LINES if LAYERS[name].input == 8 and name != "line_without"])
def test_an_integer_bias_is_off_by_half_a_step_of_the_product(name: str, after: Any, program: Program) -> None:
    layer = layers_of(program.model)[name]
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    assert layer.scales is not None
    assert layer.bias is not None
    step = layer.input.grids[0].scale * layer.scales[:, 0].double().numpy()
    (found,) = (
        values[key] * values[key.replace("int32", "scale")].astype(np.float64)
        for key in values
        if key.endswith(".bias.int32") and np.allclose(values[key.replace("int32", "scale")], step, rtol=1e-6)
    )
    assert (np.abs(found - layer.bias.double().numpy()) <= step / 2 * (1 + 1e-5)).all()


def test_integers_and_scales_stay(after: Any, program: Program) -> None:
    values = {tensor.name: tensor for tensor in after.graph.initializer}
    for name, layer in layers_of(program.model).items():
        if layer.codes is not None:
            found = numpy_helper.to_array(values[f"model.{name}.codes"]).astype(np.int8)
            np.testing.assert_array_equal(found, layer.codes.numpy())


def test_nothing_is_left_that_nobody_reads(after: Any) -> None:
    read = {name for node in after.graph.node for name in node.input} | {value.name for value in after.graph.output}
    assert {tensor.name for tensor in after.graph.initializer} <= read
    made = {name for node in after.graph.node for name in node.output}
    given = {tensor.name for tensor in after.graph.initializer} | {value.name for value in after.graph.input}
    assert read <= made | given | {""}


# Bits


def test_stored_bits_are_the_recipes(after: Any, before: Any) -> None:
    assert stored_bits(after) == {name: float(layer.bits) for name, layer in LAYERS.items() if layer.bits is not None}
    assert set(stored_bits(before).values()) == {8.0}
    for tensor in after.graph.initializer:
        if tensor.data_type == TensorProto.INT4:
            assert len(tensor.raw_data) == math.prod(tensor.dims) // 2


def test_what_computes_with_integers(after: Any, tmp_path: Any) -> None:
    """ONNX Runtime's own graph says so: 8 bits do, whatever is in float or of 16 bits does not."""
    run(after, SAMPLE.numpy(), optimized=True, save=str(tmp_path / "optimized.onnx"))
    found = integer_layers(onnx.load(tmp_path / "optimized.onnx"))
    wanted = {name for name, layer in LAYERS.items() if layer.input == 8}
    assert found <= wanted
    assert {"first", "eight", "line", "line_eight"} <= found


def test_what_computes_in_float_is_unpacked_once(after: Any, tmp_path: Any) -> None:
    """When the program is loaded, that is: no integers are left of its weights then."""
    run(after, SAMPLE.numpy(), optimized=True, save=str(tmp_path / "optimized.onnx"))
    left = {tensor.name for tensor in onnx.load(tmp_path / "optimized.onnx").graph.initializer}
    for name, layer in LAYERS.items():
        if layer.bits is not None and layer.input is None:
            assert not [value for value in left if value.startswith(f"model.{name}.codes")]


def test_the_file_does_not_contradict_itself(after: Any) -> None:
    onnx.checker.check_model(after, full_check=True)


def test_names_of_layers(after: Any) -> None:
    assert layer_of("model.down.0.block.conv1.codes") == "down.0.block.conv1"
    for name, node in weights_of(after).items():
        assert layer_of(node.input[0]) == name


@pytest.mark.parametrize(
    ("layer", "opset"),
    [
        (LayerRecipe(bits=8, input=8, output=8), 0),
        (LayerRecipe(bits=5), 0),
        (LayerRecipe(bits=None), 0),
        (LayerRecipe(bits=4), 21),
        (LayerRecipe(bits=2, input=8), 21),
        (LayerRecipe(bits=8, input=16), 21),
        (LayerRecipe(bits=None, output=16), 21),
    ],
)
def test_the_oldest_opset_that_holds_it(layer: LayerRecipe, opset: int) -> None:
    assert least_opset(Recipe(model=ModelConfig(image_size=16, width=32), layers={"a": layer})) == opset


def test_scales_of_groups_are_refused_before_anything_is_written() -> None:
    """torch.onnx has no counterpart of their operator."""
    torch.manual_seed(0)
    layer = quantizable(nn.Sequential(nn.Conv2d(8, 8, 1)).requires_grad_(False))
    grid = WeightGrid(bits=4, group=4)
    for part in layers_of(layer).values():
        assert part.weight is not None
        scales = weight_scales(part.weight, grid)
        part.store(rounded_weight(part.weight, scales, grid), scales, grid)
    with torch.no_grad():
        exported = torch.export.export(layer, (SAMPLE,))
    source = Source(exported, (SAMPLE,), SimpleNamespace(program="denoiser"))  # type: ignore[arg-type]
    (problem,) = targets()["onnx"].check([source], TargetOptions())
    assert "dequantize_per_channel_group" in problem


# Layer by layer


def part_of(model: Any, name: str) -> Any:
    """The sub-graph of one layer: from what goes into its input's point to what comes out of its output's."""
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    maker = {value: node for node in model.graph.node for value in node.output}
    (node,) = readers[f"model.{name}.codes"]
    while node.op_type not in ("Conv", "Gemm", "MatMul"):
        value = node.output[0]
        (node,) = readers[value]
    start, end = node.input[0], node.output[0]
    if LAYERS[name].input is not None:
        start = maker[maker[start].input[0]].input[0]
    if LAYERS[name].output is not None:
        (quantizing,) = readers[end]
        end = readers[quantizing.output[0]][0].output[0]
    return Extractor(onnx.shape_inference.infer_shapes(model)).extract_model([start], [end])


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("name", [name for name, layer in LAYERS.items() if layer.bits is not None])
@torch.no_grad()
def test_a_layer_alone_is_its_simulation(name: str, optimized: bool, after: Any, program: Program) -> None:
    """Given the same input; integer kernels and fake quantization differ where a sum is a tie, and nowhere else."""
    layer = layers_of(program.model)[name]
    shape = (36, 8) if name in LINES else (1, 8, 6, 6)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    found = run(part_of(after, name), x.numpy(), optimized=optimized)
    assert snr_db(layer(x).numpy(), found) > 45
