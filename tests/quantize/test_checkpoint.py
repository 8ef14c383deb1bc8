"""The quantized checkpoint: packed and back, to the bit; whatever is wrong with a file is refused by its tensor's name."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_sd.checkpoint import Checkpoint
from edge_sd.diffusion import SCHEDULES, Plan, compile_plan
from edge_sd.diffusion.choice import PlanFile, lineage
from edge_sd.diffusion.plan import Tuned, refuse_other_process
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import tensors_digest
from edge_sd.models.stepped import select
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize._quantize import Quantized, quantize
from edge_sd.quantize.calibration import Calibration
from edge_sd.quantize.checkpoint import (
    QuantizedCheckpoint,
    is_quantized,
    load_any,
    load_quantized,
    packed,
    plan_from,
    quantized_checkpoint,
    unpacked,
)
from edge_sd.quantize.form import quantizable_form
from edge_sd.quantize.grid import WeightGrid, rounded_weight, weight_scales
from edge_sd.quantize.layers import layers_of, points_of
from edge_sd.quantize.recipe import Recipe
from edge_sd.quantize.reconstruction import ReconstructionSettings

CODES, SCALES = "down.0.block.conv1.codes", "down.0.block.conv1.scales"
GRIDS, ZEROS = "down.0.block.conv1.input.step_scales", "down.0.block.conv1.input.zero_points"
FLOAT = "down.0.block.conv1.bias"


# Two to a byte


@given(arrays.arrays(np.int8, arrays.array_shapes(max_dims=4, max_side=7), elements=st.integers(-8, 7)))
def test_packed_and_back(codes: np.ndarray) -> None:
    halves = packed(codes)
    assert (halves.dtype, halves.shape) == (np.uint8, (math.ceil(codes.size / 2),))
    found = unpacked(halves, codes.shape)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, codes)


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=40))
def test_packing_by_hand(values: list[int]) -> None:
    """The first in the lower half; two's complement."""
    expected = [
        (first & 15) | (second & 15) << 4
        for first, second in zip(values[::2], [*values[1::2], *[0] * (len(values) % 2)], strict=True)
    ]
    assert packed(np.array(values, np.int8)).tolist() == expected


def test_every_byte_is_two_integers() -> None:
    found = unpacked(np.arange(256, dtype=np.uint8), (256, 2))
    low, high = np.meshgrid(np.arange(16), np.arange(16))
    np.testing.assert_array_equal(found[:, 0], np.where(low < 8, low, low - 16).ravel())
    np.testing.assert_array_equal(found[:, 1], np.where(high < 8, high, high - 16).ravel())


# There and back


@torch.no_grad()
def predictions(model: SpectralUNet, inputs: Calibration, plan: Plan) -> torch.Tensor:
    found = []
    for row in range(len(plan)):
        some = inputs.rows == row
        select(model, int(plan.program[row]))
        found.append(model.denoise(torch.from_numpy(inputs.samples[some]), torch.from_numpy(inputs.features[some])))
    return torch.stack(found)


@pytest.fixture(scope="module")
def saved(quantized: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    quantized.checkpoint.save(path)
    return path


def test_it_comes_back_and_computes_the_same_bits(quantized: Quantized, saved: Path, calibration: Calibration) -> None:
    found = load_quantized(saved)
    assert found.header == quantized.checkpoint.header
    assert found.tensors.keys() == quantized.checkpoint.tensors.keys()
    plan = quantized.plan
    assert plan.header.programs == ("denoiser", "denoiser.1")
    before, after = (predictions(of.build(), calibration, plan) for of in (quantized.checkpoint, found))
    assert torch.equal(before, after)
    path = saved.with_name("again.safetensors")
    found.save(path)
    assert path.read_bytes() == saved.read_bytes()


def test_it_holds_what_was_found(quantized: Quantized, saved: Path) -> None:
    model = load_quantized(saved).build()
    assert {name: point.grids for name, point in points_of(model).items() if point.grids} == dict(quantized.grids)
    recipe = quantized.checkpoint.header.recipe
    for name, layer in layers_of(model).items():
        assert layer.grid == recipe.layers[name].grid
        assert layer.codes is not None
        assert layer.weight is None
        assert layer.codes.abs().max() > 1
    assert not model.training


def test_programs_differ_in_their_grids_alone(quantized: Quantized, calibration: Calibration) -> None:
    model, plan = quantized.checkpoint.build(), quantized.plan
    right = predictions(model, calibration, plan)
    wrong = predictions(model, calibration, plan.with_programs([0]))
    first = recipe_start(quantized)
    assert torch.equal(right[:first], wrong[:first])
    assert all(not torch.equal(a, b) for a, b in zip(right[first:], wrong[first:], strict=True))


def recipe_start(quantized: Quantized) -> int:
    (_, start) = quantized.checkpoint.header.recipe.starts
    return start


def test_four_bits_take_half_a_byte(quantized: Quantized, parent: Checkpoint, saved: Path, tmp_path: Path) -> None:
    tensors, recipe = quantized.checkpoint.tensors, quantized.checkpoint.header.recipe
    model = quantized.checkpoint.build()
    codes = {name: tensors[f"{name}.codes"] for name in layers_of(model)}
    for name, layer in layers_of(model).items():
        numbers = math.prod(layer.shape)
        assert codes[name].nbytes == (math.ceil(numbers / 2) if recipe.layers[name].bits == 4 else numbers)
    four = sum(math.prod(layer.shape) for name, layer in layers_of(model).items() if recipe.layers[name].bits == 4)
    assert four > 20_000
    everything = sum(value.nbytes for value in tensors.values())
    assert everything < saved.stat().st_size < everything + 200 * len(tensors) + 20_000  # names, places and the header
    parent.save(tmp_path / "float.safetensors")
    weights = {name: value for name, value in parent.weights.items() if not name.startswith("temporal_net")}
    kept = sum(value.nbytes for name, value in tensors.items() if not name.startswith("temporal_net"))
    assert kept < 0.3 * sum(value.nbytes for value in weights.values())  # scales, biases and norms are much of so small a model


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_other_bits(
    bits: int, parent: Checkpoint, recipe: Recipe, calibration: Calibration, tmp_path: Path, quantized: Quantized
) -> None:
    """In groups as well: up to 4 bits are packed, more take a byte."""
    layers = {
        name: layer.model_copy(update={"bits": bits, "input": None, "output": None, "group": 4})
        if name.startswith("down.0.block") or (".attention." in name and layer.bits)
        else layer.model_copy(update={"bits": None, "input": None, "output": None})
        for name, layer in recipe.layers.items()
    }
    form, changed = quantizable_form(parent.build()), recipe.model_copy(update={"layers": layers, "starts": (0,)})
    for name, layer in layers_of(form).items():
        grid: WeightGrid | None = layers[name].grid
        if grid is not None:
            assert layer.weight is not None
            scales = weight_scales(layer.weight, grid)
            assert scales.shape[1] == layer.weight.shape[1] // 4
            layer.store(rounded_weight(layer.weight, scales, grid), scales, grid)
    header = quantized.checkpoint.header
    made = quantized_checkpoint(form, parent, changed, provenance=header.provenance, calibration="", blocks=())
    made.save(tmp_path / "model.safetensors")
    found = load_quantized(tmp_path / "model.safetensors")
    assert {value.dtype for name, value in found.tensors.items() if name.endswith(".codes")} == {
        np.dtype(np.uint8 if bits <= 4 else np.int8)
    }
    assert torch.equal(*(predictions(model, calibration, quantized.plan) for model in (form.eval(), found.build())))


# Which of them it is


def test_either_kind_is_read(saved: Path, parent: Checkpoint, tmp_path: Path) -> None:
    parent.save(tmp_path / "float.safetensors")
    assert (is_quantized(saved), is_quantized(tmp_path / "float.safetensors")) == (True, False)
    assert isinstance(load_any(saved), QuantizedCheckpoint)
    assert isinstance(load_any(tmp_path / "float.safetensors"), Checkpoint)
    assert not is_quantized(tmp_path / "missing.safetensors")
    assert not is_quantized(tmp_path)
    with pytest.raises(EdgeSDError, match="does not exist"):
        load_any(tmp_path / "missing.safetensors")


# Plans


def test_its_plan_has_its_programs(quantized: Quantized) -> None:
    checkpoint = quantized.checkpoint
    plan, start = checkpoint.plan_for("dpmpp", 6), recipe_start(quantized)
    assert plan.header.programs == ("denoiser", "denoiser.1")
    assert plan.program.tolist() == [0] * start + [1] * (6 - start)
    for solver, steps, spacing in (("ddim", 6, None), ("dpmpp", 5, None), ("dpmpp", 6, "quadratic")):
        with pytest.raises(UsageError, match="quantized for 6 steps of dpmpp") as caught:
            checkpoint.plan_for(solver, steps, spacing)
        assert "--solver dpmpp --steps 6" in caught.value.hint


def test_of_one_group_any_plan_will_do(quantized: Quantized) -> None:
    header = quantized.checkpoint.header
    for starts in ((), (0,)):
        recipe = header.recipe.model_copy(update={"starts": starts})
        one = dataclasses.replace(quantized.checkpoint, header=header.model_copy(update={"recipe": recipe}))
        plan = one.plan_for("ddim", 3)
        assert (plan.header.programs, plan.program.tolist()) == (("denoiser",), [0, 0, 0])


def test_a_plan_made_elsewhere_gets_its_programs_where_it_visits_the_same_timesteps(quantized: Quantized, tmp_path: Path) -> None:
    checkpoint, start = quantized.checkpoint, recipe_start(quantized)
    times = checkpoint.plan_for("dpmpp", 6).timestep
    header = checkpoint.header
    for solver in ("dpmpp", "unipc"):
        given_plan = compile_plan(header.noise_schedule, 6, solver=solver, prediction=header.prediction, times=times)
        given_plan.save(tmp_path / solver)
        plan = plan_from(checkpoint, PlanFile(path=tmp_path / solver))
        assert plan.program.tolist() == [0] * start + [1] * (6 - start)
        np.testing.assert_array_equal(plan.columns["b_next"], given_plan.columns["b_next"])
    compile_plan(header.noise_schedule, 6, prediction=header.prediction, times=times - 1).save(tmp_path / "other")
    with pytest.raises(UsageError, match="in groups with ranges of their own, and the plan's 6 timesteps are others"):
        plan_from(checkpoint, PlanFile(path=tmp_path / "other"))
    recipe = header.recipe.model_copy(update={"starts": (0,)})
    one = dataclasses.replace(checkpoint, header=header.model_copy(update={"recipe": recipe}))
    assert plan_from(one, PlanFile(path=tmp_path / "other")).header.programs == ("denoiser",)


def test_a_plan_tuned_for_the_weights_it_came_from_suits_it(quantized: Quantized, parent: Checkpoint) -> None:
    header = quantized.checkpoint.header
    assert lineage(header) == (header.digest, parent.header.digest)
    plan = compile_plan(header.noise_schedule, 2, prediction=header.prediction)
    for weights, suits in ((parent.header.digest, True), (header.digest, True), ("c" * 64, False)):
        tuned = Tuned(mode="parallel", weights=weights, times=tuple(plan.timestep.tolist()))
        for_model = plan.with_timesteps(plan.timestep - 1, tuned), header.noise_schedule, header.prediction, "a plan"
        if suits:
            refuse_other_process(*for_model, lineage(header))
        else:
            with pytest.raises(EdgeSDError, match="a plan: the plan's timesteps were tuned for other weights"):
                refuse_other_process(*for_model, lineage(header))
        refuse_other_process(*for_model)


@given(st.integers(1, 20), st.sets(st.integers(1, 19), max_size=4))
def test_a_program_a_group(steps: int, inner: set[int]) -> None:
    starts = [0, *sorted(start for start in inner if start < steps)]
    plan = compile_plan(SCHEDULES["cosine"], steps, prediction="v").with_programs(starts)
    assert plan.header.programs == ("denoiser", *(f"denoiser.{index}" for index in range(1, len(starts))))
    assert plan.program.tolist() == [sum(start <= row for start in starts[1:]) for row in range(steps)]


# What is refused


def test_a_byte_that_flipped(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    for place in (len(whole) - 1, len(whole) // 2):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (tmp_path / "model.safetensors").write_bytes(bytes(damaged))
        with pytest.raises(EdgeSDError, match=r"SHA-256 differs|NaN"):
            load_quantized(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(EdgeSDError, match="not a whole safetensors file"):
        load_quantized(tmp_path / "model.safetensors")


def set_(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda tensors: tensors.update({name: change(tensors[name])})


FAULTS: dict[str, tuple[Callable[[dict[str, np.ndarray]], object], str]] = {
    "no codes": (lambda tensors: tensors.pop(CODES), rf"tensor {CODES} is missing"),
    "no scales": (lambda tensors: tensors.pop(SCALES), rf"tensor {SCALES} is missing"),
    "no grid": (lambda tensors: tensors.pop(GRIDS), rf"tensor {GRIDS} is missing"),
    "no zero points": (lambda tensors: tensors.pop(ZEROS), rf"tensor {ZEROS} is missing"),
    "no bias": (lambda tensors: tensors.pop(FLOAT), rf"{FLOAT} is None"),
    "one too many": (lambda tensors: tensors.update(more=np.zeros(1, np.float32)), r"more is \(1,\), expected None"),
    "float codes": (set_(CODES, lambda value: value.astype(np.float32)), rf"tensor {CODES} is float32"),
    "codes that are not packed": (set_(CODES, lambda value: value.view(np.int8)), rf"tensor {CODES} is int8"),
    "too few codes": (set_(CODES, lambda value: value[:-1]), r"down\.0\.block\.conv1: \d+ bytes of integers"),
    "codes of another shape": (set_("conv_in.codes", lambda value: value.transpose(1, 0, 2, 3)), "conv_in: integers"),
    "codes out of range": (set_("conv_in.codes", lambda value: np.full_like(value, -128)), "conv_in: its integers leave -127"),
    "a scale of 0": (set_(SCALES, lambda value: value * 0), r"down\.0\.block\.conv1: scales"),
    "too few scales": (set_(SCALES, lambda value: value[:-1]), r"down\.0\.block\.conv1: scales"),
    "no scale a channel": (set_(SCALES, lambda value: value[:, :0]), r"down\.0\.block\.conv1: scales"),
    "scales that do not divide": (set_(SCALES, lambda value: np.tile(value, 3)), r"down\.0\.block\.conv1: scales"),
    "flat scales": (set_(SCALES, lambda value: value[:, 0]), rf"tensor {SCALES} is float32 \(8,\)"),
    "one grid of two": (set_(GRIDS, lambda value: value[:1]), r"down\.0\.block\.conv1\.input: 1 grids"),
    "a grid's scale of 0": (set_(GRIDS, lambda value: value * 0), r"down\.0\.block\.conv1\.input"),
    "a zero point beyond the grid": (set_(ZEROS, lambda value: value + 256), r"down\.0\.block\.conv1\.input"),
    "a zero point below the grid": (set_(ZEROS, lambda value: value - 256), r"down\.0\.block\.conv1\.input"),
    "a bias of another shape": (set_(FLOAT, lambda value: value[:3]), rf"{FLOAT} is \(3,\), expected \(8,\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str, quantized: Quantized, tmp_path: Path) -> None:
    """Of a file that says of itself that it is whole."""
    tensors = dict(quantized.checkpoint.tensors)
    FAULTS[fault][0](tensors)
    header = quantized.checkpoint.header.model_copy(update={"digest": tensors_digest(tensors)})
    QuantizedCheckpoint(header, tensors).save(tmp_path / "model.safetensors")
    found = load_quantized(tmp_path / "model.safetensors")
    with pytest.raises(EdgeSDError, match=FAULTS[fault][1]):
        found.build()


def test_two_bits_leave_no_room_for_seven(quantized: Quantized) -> None:
    """Packed alike; only the recipe knows how far they may reach."""
    header = quantized.checkpoint.header
    recipe = header.recipe.with_bits({"down.0.block.conv1": 2}, "")
    wrong = dataclasses.replace(quantized.checkpoint, header=header.model_copy(update={"recipe": recipe}))
    with pytest.raises(EdgeSDError, match=r"down\.0\.block\.conv1: its integers leave -2 … 1"):
        wrong.build()


def test_a_tensor_that_is_not_finite(quantized: Quantized, tmp_path: Path) -> None:
    tensors = {**quantized.checkpoint.tensors}
    tensors[SCALES] = tensors[SCALES] * np.float32("nan")
    header = quantized.checkpoint.header.model_copy(update={"digest": tensors_digest(tensors)})
    QuantizedCheckpoint(header, tensors).save(tmp_path / "model.safetensors")
    with pytest.raises(EdgeSDError, match=f"tensor {SCALES} holds a NaN"):
        load_quantized(tmp_path / "model.safetensors")


def test_weights_alone_are_of_any_plan(parent: Checkpoint, recipe: Recipe, calibration: Calibration, tmp_path: Path) -> None:
    """No activation is on a grid, so there is one program, whatever number of groups was allowed."""
    layers = {name: layer.model_copy(update={"input": None, "output": None}) for name, layer in recipe.layers.items()}
    changes = {"layers": layers, "reconstruction": ReconstructionSettings(iterations=0), "groups": 0}
    result = quantize(parent, recipe.model_copy(update=changes), calibration, tmp_path)
    assert result.grids == {}
    assert result.checkpoint.header.recipe.starts == (0,)
    assert result.checkpoint.plan_for("ddim", 9).header.programs == ("denoiser",)
    assert not [name for name in result.checkpoint.tensors if "step_scales" in name]
