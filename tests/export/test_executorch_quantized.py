"""ExecuTorch programs of quantized models: what XNNPACK computes is what torch computes, and the bits are those of the file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edge_sd.bundle import Bundle
from edge_sd.bundle.bits import LayerBits
from edge_sd.bundle.contract import Contract
from edge_sd.checkpoint import Checkpoint
from edge_sd.errors import UsageError
from edge_sd.evaluation.metrics import snr_db
from edge_sd.export import ExportRequest, Source, TargetOptions, check_export, export_bundle
from edge_sd.export._export import TorchSession, draw
from edge_sd.export._programs import DenoiserProgram
from edge_sd.export._xnnpack import DYNAMIC, FLOAT, STATIC, for_xnnpack
from edge_sd.export.executorch import FILE, ExecuTorchTarget
from edge_sd.models.blocks import ConvDown
from edge_sd.models.stepped import select
from edge_sd.quantize._quantize import calibrate, quantize
from edge_sd.quantize.calibration import CalibrationRequest
from edge_sd.quantize.checkpoint import QuantizedCheckpoint
from edge_sd.quantize.grid import rounded_weight, search_activation_grid, weight_scales
from edge_sd.quantize.layers import layers_of, quantizable
from edge_sd.quantize.recipe import LayerRecipe, Recipe, default_layers
from edge_sd.quantize.reconstruction import ReconstructionSettings
from edge_sd.quiet import quiet
from edge_sd.runtimes.executorch import ExecuTorchRuntime

pytest.importorskip("executorch")
CHANNELS, SIDE = 64, 16


# Single layers


@dataclass(frozen=True)
class Lowered:
    """A module of layers, each with its recipe, in torch, as it is handed over, and lowered."""

    simulated: list[Tensor]
    handed: list[Tensor]
    lowered: list[Tensor]
    bits: dict[str, LayerBits]
    bytes: int


class _Program(nn.Module):
    """Stands for the denoiser's program: its layers are those of `model`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


def source_of(module: nn.Module, x: Tensor, recipe: Recipe, number: int = 0) -> Source:
    with torch.no_grad():
        exported = torch.export.export(module, (x,))
    contract = Contract.model_construct(program=f"denoiser.{number}" if number else "denoiser")  # of it only the name is read
    return Source(exported, (x,), contract, (), recipe)


def lower(layers: dict[str, nn.Module], recipes: dict[str, LayerRecipe], x: Tensor, folder: Path, programs: int = 1) -> Lowered:
    """Quantize layers one after the other, each program with ranges of its own, and lower all programs into one file."""
    with quiet():
        from executorch.extension.pybindings.portable_lib import _load_for_executorch

    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    quantizable(model)
    value = x
    for name, layer in layers_of(model).items():
        wanted = recipes[name]
        if wanted.grid is not None:
            assert layer.weight is not None
            scales = weight_scales(layer.weight, wanted.grid)
            layer.store(rounded_weight(layer.weight, scales, wanted.grid), scales, wanted.grid)
        before, value = value, layer(value)
        for point, bits, seen in ((layer.input, wanted.input, before), (layer.output, wanted.output, value)):
            if bits is not None:
                point.grids = tuple(search_activation_grid(seen * (1 + step), bits, "minmax") for step in range(programs))
    recipe = Recipe.model_construct(layers=recipes)
    program = _Program(model).eval()
    sources, simulated, handed = [], [], []
    for number in range(programs):
        select(program, number)
        sources.append(source_of(program, x, recipe, number))
        before_code = sources[-1].exported.graph_module.code
        with torch.no_grad():
            simulated.append(program(x))
            handed.append(for_xnnpack(sources[-1].exported, recipe).exported.module()(x))
        assert sources[-1].exported.graph_module.code == before_code  # other targets take it as well
    found = ExecuTorchTarget().export(sources, TargetOptions(), folder)
    module = _load_for_executorch(str(folder / FILE))
    lowered = [module.run_method(source.name, (x,))[0].clone() for source in sources]
    first = found[sources[0].name]
    assert first.placement.delegate_calls == 1
    assert not first.placement.outside
    return Lowered(simulated, handed, lowered, {layer.layer: layer for layer in first.layers}, (folder / FILE).stat().st_size)


def convolution(kernel: int = 3, inputs: int = CHANNELS) -> nn.Conv2d:
    return nn.Conv2d(inputs, 2 * CHANNELS, kernel, padding=kernel // 2)


IMAGE, TOKENS = (1, CHANNELS, SIDE, SIDE), (SIDE * SIDE, CHANNELS)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], LayerRecipe, float, str]] = {
    "convolution": (convolution, IMAGE, LayerRecipe(bits=8, input=8, output=8), 8, STATIC),
    "convolution of 4 bits": (convolution, IMAGE, LayerRecipe(bits=4, input=8, output=8), 8, STATIC),
    "convolution of groups": (convolution, IMAGE, LayerRecipe(bits=4, group=16, input=8, output=8), 8, STATIC),
    "convolution padded at an end": (lambda: ConvDown(CHANNELS, "end"), IMAGE, LayerRecipe(bits=8, input=8, output=8), 8, STATIC),
    "convolution of weights alone": (convolution, IMAGE, LayerRecipe(bits=8), 32, FLOAT),
    "convolution of 16 bits": (convolution, IMAGE, LayerRecipe(bits=8, input=16, output=16), 32, FLOAT),
    "float convolution": (convolution, IMAGE, LayerRecipe(bits=None, input=8, output=8), 32, FLOAT),
    "1x1": (lambda: convolution(1), IMAGE, LayerRecipe(bits=8, input=8, output=8), 8, STATIC),
    "1x1 of weights alone": (lambda: convolution(1), IMAGE, LayerRecipe(bits=8), 8, DYNAMIC),
    "1x1 of 4 bits": (lambda: convolution(1), IMAGE, LayerRecipe(bits=4, input=8, output=8), 4, DYNAMIC),
    "linear": (lambda: nn.Linear(CHANNELS, 96), TOKENS, LayerRecipe(bits=8, input=8), 8, DYNAMIC),
    "linear with an output": (lambda: nn.Linear(CHANNELS, 96), TOKENS, LayerRecipe(bits=8, input=8, output=8), 8, STATIC),
    "linear of 4 bits": (lambda: nn.Linear(CHANNELS, 96), TOKENS, LayerRecipe(bits=4, input=8), 4, DYNAMIC),
    "linear of 3 bits": (lambda: nn.Linear(CHANNELS, 96), TOKENS, LayerRecipe(bits=3, input=8), 4, DYNAMIC),
    "linear of groups": (lambda: nn.Linear(CHANNELS, 96), TOKENS, LayerRecipe(bits=4, group=32, input=8), 4, DYNAMIC),
    "linear of small groups": (lambda: nn.Linear(CHANNELS, 96), TOKENS, LayerRecipe(bits=4, group=16, input=8), 8, DYNAMIC),
    "linear of odd rows": (lambda: nn.Linear(35, 96), (9, 35), LayerRecipe(bits=4, input=8), 8, DYNAMIC),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_lowered_layer_computes_what_torch_does(case: str, tmp_path: Path) -> None:
    make, shape, recipe, stored, computed = CASES[case]
    torch.manual_seed(0)
    found = lower({"layer": make()}, {"layer": recipe}, torch.randn(shape) + 0.3, tmp_path)
    assert snr_db(found.handed[0].numpy(), found.lowered[0].numpy()) > 45
    # As it was calibrated, or on finer grids and on fewer of them: the difference is the calibrated grids' own error.
    same = computed == STATIC and recipe.group is None
    assert snr_db(found.simulated[0].numpy(), found.lowered[0].numpy()) > (45 if same else 36)
    layer = found.bits["layer"]
    assert (layer.requested, layer.requested_activations) == (recipe.bits, recipe.input)
    assert (layer.stored, layer.computed) == (stored, computed)
    as_asked = recipe.bits == stored and (recipe.input is None) == (computed == FLOAT)
    assert bool(layer.why) == (not as_asked)
    assert layer.fell_back <= bool(layer.why)


def test_the_bits_of_each_layer_add_up_to_the_file_and_programs_share_weights(tmp_path: Path) -> None:
    """Convolutions of 8 and 32 bits and linear layers of 4, in two programs of other ranges: one copy of every weight."""
    torch.manual_seed(0)
    layers = {"a": convolution(), "b": convolution(1, 2 * CHANNELS), "c": convolution(3, 2 * CHANNELS), "d": convolution(1, 128)}
    recipes = {
        "a": LayerRecipe(bits=8, input=8, output=8),
        "b": LayerRecipe(bits=4, input=8, output=8),
        "c": LayerRecipe(bits=4),
        "d": LayerRecipe(bits=4, group=64),
    }
    x = torch.randn(IMAGE)
    one, two = (lower(layers_copy, recipes, x, tmp_path, programs) for programs, layers_copy in ((1, layers), (2, dict(layers))))
    assert {name: layer.stored for name, layer in one.bits.items()} == {"a": 8, "b": 4, "c": 32, "d": 4}
    weights = sum(layer.stored * layer.weights / 8 for layer in one.bits.values())
    assert weights < one.bytes < 1.05 * weights
    assert two.bytes < 1.05 * one.bytes
    assert snr_db(two.handed[0].numpy(), two.handed[1].numpy()) < 50  # they are two programs
    for handed, lowered in zip(two.handed, two.lowered, strict=True):
        assert snr_db(handed.numpy(), lowered.numpy()) > 30


@pytest.mark.parametrize("group", [None, 64])
def test_four_bits_take_half_a_byte(group: int | None, tmp_path: Path) -> None:
    recipe = LayerRecipe(bits=4, group=group, input=8)
    found = lower({"layer": nn.Linear(512, 512)}, {"layer": recipe}, torch.randn(16, 512), tmp_path)
    assert found.bytes < 0.6 * 512 * 512


# A whole model


MakeCheckpoint = Callable[..., Checkpoint]


def quantized(checkpoint: Checkpoint, folder: Path, bits: int = 8, activations: Any = 8, groups: int = 1) -> QuantizedCheckpoint:
    """Rounded to nearest, ranges of four trajectories."""
    model = checkpoint.header.model
    recipe = Recipe(
        model=model,
        steps=4,
        groups=groups,
        layers=default_layers(model, bits, activations),
        calibration=CalibrationRequest(trajectories=4),
        reconstruction=ReconstructionSettings(iterations=0),
    )
    calibration = calibrate(checkpoint, recipe, folder / "calibration.safetensors")
    return quantize(checkpoint, recipe, calibration, folder / "blocks").checkpoint


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: MakeCheckpoint) -> Checkpoint:
    """8 channels of 8×8, gated, with attention: a map of another layout has the same shape."""
    return make_checkpoint()


@pytest.fixture(scope="module")
def whole(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizedCheckpoint, Bundle]:
    """Two groups of steps."""
    folder = tmp_path_factory.mktemp("quantized")
    found = quantized(checkpoint, folder, groups=2)
    request = ExportRequest(("executorch",), steps=4, goldens=1)
    return found, export_bundle(found, folder / "quantized.edgesd", request)


def test_a_lowered_model_is_as_near_to_the_float_model_as_the_simulation(
    checkpoint: Checkpoint, whole: tuple[QuantizedCheckpoint, Bundle]
) -> None:
    found, bundle = whole
    model, form, plan = checkpoint.build(), found.build(), bundle.plan
    sample_shape = model.config.sample_shape
    assert sample_shape[1:] == (model.config.width,) * 2
    simulated = TorchSession(DenoiserProgram(form), sample_shape)
    lowered = [ExecuTorchRuntime().load(bundle, 1, name) for name in plan.header.programs]
    assert len(lowered) == 2
    request = ExportRequest(("executorch",), steps=4, goldens=8, seed=2)
    ratios = {"simulated": [0.0, 0.0], "lowered": [0.0, 0.0]}
    for trajectory in draw(plan, model, None, request):
        for row in range(len(plan)):
            inputs = trajectory.samples[row : row + 1], trajectory.features[row : row + 1]
            program, wanted = int(plan.program[row]), trajectory.predictions[row]
            simulated.select(program)
            for name, session in (("simulated", simulated), ("lowered", lowered[program])):
                ratios[name][0] += float((wanted**2).sum())
                ratios[name][1] += float(((session(*inputs)[0] - wanted) ** 2).sum())
    db = {name: 10 * torch.log10(torch.tensor(signal / noise)).item() for name, (signal, noise) in ratios.items()}
    assert db["simulated"] > 15
    assert db["lowered"] > db["simulated"] - 1.5


def test_every_layer_of_the_recipe_is_accounted_for(whole: tuple[QuantizedCheckpoint, Bundle]) -> None:
    found, bundle = whole
    recipe, programs = found.header.recipe, [bundle.program("executorch", name) for name in bundle.plan.header.programs]
    shapes = {name: layer.shape for name, layer in layers_of(found.build()).items()}
    for program in programs:
        assert program.file == FILE
        assert {layer.layer: layer.weights for layer in program.layers} == {
            name: torch.Size(shape).numel() for name, shape in shapes.items()
        }
        assert program.placement is not None
        assert program.placement.delegate_calls == 1
        for layer in program.layers:
            wanted = recipe.layers[layer.layer]
            in_float = layer.layer in ("conv_in", "conv_out") or ".skip" in layer.layer
            assert layer.computed == (STATIC if wanted.output else FLOAT if in_float else DYNAMIC)
            assert bool(layer.why) == (wanted.input is None or layer.fell_back)


def test_the_grids_of_attention_s_products_are_taken_off_and_that_is_said(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """16 px: 256 tokens on the upper level, whose attention is quantized."""
    wide = make_checkpoint(image_size=16, multipliers=(1,), attention=(1,), gating=False)
    request = ExportRequest(("executorch",), steps=4, goldens=1)
    bundle = export_bundle(quantized(wide, tmp_path), tmp_path / "wide.edgesd", request)
    program = bundle.program("executorch", "denoiser")
    assert program.placement is not None
    assert "products are computed in float" in program.placement.note
    assert "attention.attend" in program.placement.note
    (query,) = [layer for layer in program.layers if layer.layer.endswith("down.0.attention.q")]
    assert (query.requested_activations, query.stored, query.computed) == (8, 8, DYNAMIC)


# What is refused


@pytest.mark.parametrize(("delegate", "hint"), [("coreml", "--target coreml takes one"), ("vulkan", "xnnpack is")])
def test_other_delegates_are_given_no_quantized_model(delegate: Any, hint: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    options = TargetOptions(executorch_delegate=delegate)
    request = ExportRequest(("executorch",), options, steps=4, goldens=1)
    found = quantized(checkpoint, tmp_path)
    (check,) = check_export(found, None, request, tmp_path / "x.edgesd")
    assert len(check.problems) == 1
    assert f"{delegate} delegate is given no quantized model" in check.problems[0]
    assert hint in check.problems[0]
    with pytest.raises(UsageError, match=f"{delegate} delegate"):
        export_bundle(found, tmp_path / "x.edgesd", request)
