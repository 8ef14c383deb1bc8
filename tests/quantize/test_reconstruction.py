"""Rounding that is learnt: against all roundings there are, block by block, to the same bits also after an interruption."""

import copy
import dataclasses
import itertools
import math
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES
from edge_sd.evaluation.metrics import snr_db
from edge_sd.models.unet import SpectralUNet, Unit
from edge_sd.quantize import _quantize, reconstruction
from edge_sd.quantize._quantize import Quantized, plan_of, quantize
from edge_sd.quantize.calibration import Calibration, CalibrationRequest, capture
from edge_sd.quantize.checkpoint import load_quantized
from edge_sd.quantize.form import quantizable_form
from edge_sd.quantize.grid import WeightGrid, restored_weight, rounded_weight, weight_scales
from edge_sd.quantize.layers import layers_of, points_of, quantizable
from edge_sd.quantize.recipe import Recipe, default_layers
from edge_sd.quantize.reconstruction import BlockResult, ReconstructionSettings, reconstruct
from edge_sd.quantize.rounding import SoftRounding, sharpness

MakeModel = Callable[..., SpectralUNet]


class Line(nn.Module):
    """One linear layer, walked as a U-Net is."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer, self.feature_width = nn.Linear(inputs, outputs), 1
        self.config = SimpleNamespace(image_size=1, sample_shape=(inputs,))

    def walk(self, x: Tensor, features: Tensor) -> Generator[Unit, Tensor, Tensor]:
        return (yield Unit("layer", self.layer, (x,)))


def correlated(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Inputs that share most of what they are: where one weight was rounded up, another can make up for it."""
    generator = np.random.default_rng(seed)
    common, own = generator.standard_normal((count, 2)) @ generator.standard_normal((2, width)), 0.1
    return (common + own * generator.standard_normal((count, width))).astype(np.float32)


def calibration_of(samples: np.ndarray) -> Calibration:
    return Calibration(None, samples, np.zeros(len(samples), np.int64), np.zeros((len(samples), 1), np.float32))  # type: ignore[arg-type]


def learnt(line: Line, samples: np.ndarray, grid: WeightGrid, **settings: float) -> tuple[BlockResult, nn.Module]:
    form = quantizable(copy.deepcopy(line).requires_grad_(False))
    wanted = ReconstructionSettings(**settings)  # type: ignore[arg-type]
    (result,) = reconstruct(line, form, {"layer": grid}, calibration_of(samples), np.zeros(1, np.int64), wanted)  # type: ignore[arg-type]
    return result, form


# One layer


@torch.no_grad()
def test_adaround_finds_a_better_rounding_than_the_nearest() -> None:
    torch.manual_seed(0)
    line, grid, samples = Line(24, 8), WeightGrid(bits=3), correlated(256, 24)
    result, form = learnt(line, samples, grid, iterations=600, float_learning_rate=0)
    x = torch.from_numpy(samples).double()
    exact = line.double().layer(x)
    weight = line.layer.weight.float()
    scales = weight_scales(weight, grid)
    nearest = restored_weight(rounded_weight(weight, scales, grid), scales)
    before = snr_db(exact, nn.functional.linear(x, nearest.double(), line.layer.bias))
    after = snr_db(exact, layers_of(form)["layer"](x.float()))
    assert after > before + 5
    assert result.before == pytest.approx(before, abs=1e-3)
    assert result.after == pytest.approx(after, abs=1e-3)
    # The same grid, each weight one of its two neighbours on it.
    assert torch.equal(result.scales["layer"], scales)
    floor = (weight / scales).floor()
    codes = result.codes["layer"].float()
    assert ((codes == floor.clamp(grid.low, grid.high)) | (codes == (floor + 1).clamp(grid.low, grid.high))).all()
    assert (codes != rounded_weight(weight, scales, grid)).any()


@torch.no_grad()
def test_adaround_is_among_the_best_of_all_roundings() -> None:
    """Of 2¹⁰ a row, each tried."""
    torch.manual_seed(1)
    line, grid, samples = Line(10, 4), WeightGrid(bits=3, method="minmax"), correlated(64, 10, seed=1)
    result, _ = learnt(line, samples, grid, iterations=1500, float_learning_rate=0, batch_size=64)
    weight, scales = line.layer.weight.double().numpy(), result.scales["layer"].double().numpy()
    ups = np.array(list(itertools.product((0, 1), repeat=10)))
    shares, found, nearest = [], 0.0, 0.0
    for row in range(4):
        floor, x = np.floor(weight[row] / scales[row]), samples.astype(np.float64)

        def error(codes: np.ndarray, row: int = row, x: np.ndarray = x) -> np.ndarray:
            integers = np.clip(codes, grid.low, grid.high)
            return ((x @ (integers * scales[row] - weight[row]).T) ** 2).sum(0)

        mine = error(result.codes["layer"][row].numpy()).item()
        shares.append((error(floor + ups) < mine).mean())
        found += mine
        nearest += error(np.rint(weight[row] / scales[row])).item()
    assert np.mean(shares) < 0.1
    assert found < nearest / 3


@torch.no_grad()
def test_scales_and_biases_are_tuned_along() -> None:
    torch.manual_seed(2)
    line, grid, samples = Line(24, 8), WeightGrid(bits=3), correlated(128, 24)
    fixed, _ = learnt(line, samples, grid, iterations=300, float_learning_rate=0)
    moved, form = learnt(line, samples, grid, iterations=300, float_learning_rate=1e-3)
    assert moved.after > fixed.after
    assert not torch.equal(moved.scales["layer"], fixed.scales["layer"])
    assert moved.floats.keys() == fixed.floats.keys() == {"layer.bias"}
    assert torch.equal(fixed.floats["layer.bias"], line.layer.bias)
    assert torch.equal(form.get_parameter("layer.bias"), moved.floats["layer.bias"])


@torch.no_grad()
def test_no_iterations_round_to_the_nearest() -> None:
    torch.manual_seed(3)
    line, grid = Line(8, 4), WeightGrid(bits=4, group=4)
    result, form = learnt(line, correlated(16, 8), grid, iterations=0)
    scales = weight_scales(line.layer.weight, grid)
    assert torch.equal(result.codes["layer"], rounded_weight(line.layer.weight, scales, grid))
    assert torch.equal(result.scales["layer"], scales)
    assert (result.before, result.floats) == (result.after, {})
    layer = layers_of(form)["layer"]
    assert torch.equal(layer.weights(), restored_weight(result.codes["layer"], scales))


# The soft rounding


@given(st.integers(2, 8), st.integers(0, 100))
def test_it_starts_from_the_weights_as_they_are(bits: int, seed: int) -> None:
    weight = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(seed))
    grid = WeightGrid(bits=bits, group=3, method="minmax")
    scales = weight_scales(weight, grid)
    soft = SoftRounding(weight, scales, grid)
    torch.testing.assert_close(soft().detach(), weight, rtol=1e-4, atol=2e-4 * scales.max().item())
    assert torch.equal(soft.scales(), scales)
    # Undecided to the last it would round to the nearest.
    off = (soft.codes() != rounded_weight(weight, scales, grid)).sum()
    assert off <= 1  # a tie


def test_indecision_is_that_of_equation_24() -> None:
    weight = torch.tensor([[0.0, 0.5, 1.0, 2.0]])
    soft = SoftRounding(weight, torch.ones(1, 1), WeightGrid(bits=4))
    with torch.no_grad():
        soft.v.copy_(torch.tensor([[-20.0, 0.0, 20.0, 1.0]]))
    h = np.clip(1 / (1 + np.exp(-np.array([-20.0, 0, 20, 1]))) * 1.2 - 0.1, 0, 1)
    np.testing.assert_allclose(soft.up().detach().numpy()[0], h, atol=1e-6)
    for beta in (2.0, 7.5, 20.0):
        assert soft.indecision(beta).item() == pytest.approx((1 - np.abs(2 * h - 1) ** beta).mean(), abs=1e-6)
    assert soft.codes().tolist() == [[0, 1, 2, 3]]


def test_sharpness_falls_from_20_to_2() -> None:
    assert [sharpness(share, 0.2) for share in (0, 0.2, 0.6, 1)] == pytest.approx([20, 20, 11, 2])


# A U-Net's blocks


@pytest.fixture(scope="module")
def small(make_model: MakeModel) -> tuple[SpectralUNet, Calibration]:
    """8 px, twelve inputs of three steps."""
    model = make_model(3, image_size=8)
    checkpoint = Checkpoint.of(model, SCHEDULES["cosine"], "v", Provenance(made_by="train"))
    recipe = Recipe(model=model.config, steps=3, layers=default_layers(model.config, 3, None))
    return model, capture(model, plan_of(checkpoint, recipe), CalibrationRequest(trajectories=4), checkpoint.header.digest)


def fitted(small: tuple[SpectralUNet, Calibration], **settings: float) -> tuple[list[BlockResult], SpectralUNet]:
    model, calibration = small
    form = quantizable_form(model)
    grids = dict.fromkeys(layers_of(form), WeightGrid(bits=3))
    wanted = ReconstructionSettings(**{"iterations": 60, "batch_size": 8, **settings})  # type: ignore[arg-type]
    return reconstruct(model, form, grids, calibration, np.zeros(3, np.int64), wanted), form


@torch.no_grad()
def test_blocks_are_better_than_rounded_to_the_nearest(small: tuple[SpectralUNet, Calibration]) -> None:
    model, calibration = small
    results, form = fitted(small)
    assert [result.name for result in results] == model.unit_names()
    gains = [result.after - result.before for result in results]
    assert np.mean(gains) > 1
    assert min(gains) > -0.5
    _, plain = fitted(small, iterations=0)
    x, features = torch.from_numpy(calibration.samples), torch.from_numpy(calibration.features)
    exact = model.denoise(x, features)
    assert snr_db(exact, form.denoise(x, features)) > snr_db(exact, plain.denoise(x, features)) + 2


@torch.no_grad()
def test_a_block_is_given_what_the_quantized_ones_before_it_put_out(small: tuple[SpectralUNet, Calibration]) -> None:
    """The last block's figure is that of the whole model."""
    model, calibration = small
    results, form = fitted(small, iterations=5)
    x, features = torch.from_numpy(calibration.samples), torch.from_numpy(calibration.features)
    assert results[-1].after == pytest.approx(snr_db(model.denoise(x, features), form.denoise(x, features)), abs=1e-3)


def bits_of(results: list[BlockResult]) -> dict[str, Tensor]:
    return {
        f"{result.name} {kind} {name}": value
        for result in results
        for kind in ("codes", "scales", "floats")
        for name, value in getattr(result, kind).items()
    }


def test_the_same_seed_the_same_bits(small: tuple[SpectralUNet, Calibration]) -> None:
    torch.manual_seed(1)
    first = bits_of(fitted(small, iterations=4)[0])
    torch.manual_seed(2)
    again = bits_of(fitted(small, iterations=4)[0])
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = bits_of(fitted(small, iterations=4, seed=1)[0])
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_norms_and_biases_move_and_nothing_else_does(small: tuple[SpectralUNet, Calibration]) -> None:
    """The wavelet's filters are fixed."""
    model, _ = small
    results, form = fitted(small, iterations=4)
    before = dict(quantizable_form(model).named_parameters())
    moved = {name for name, value in form.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert {name.rpartition(".")[2] for name in moved} == {"weight", "bias"}
    assert all(before[name].ndim == 1 for name in moved)
    assert moved <= {name for result in results for name in result.floats}
    assert not any(parameter.requires_grad for parameter in form.parameters())
    assert all(point.programs is None for point in points_of(form).values())


def test_layers_that_stay_in_float_stay(small: tuple[SpectralUNet, Calibration]) -> None:
    model, calibration = small
    form = quantizable_form(model)
    grids = {name: WeightGrid(bits=4) for name in layers_of(form) if name.startswith(("down.0", "conv_out"))}
    wanted = ReconstructionSettings(iterations=2)
    results = reconstruct(model, form, grids, calibration, np.zeros(3, np.int64), wanted)
    assert [result.name for result in results] == ["down.0", "conv_out"]
    assert {name for name, layer in layers_of(form).items() if layer.codes is not None} == set(grids)


# A whole run


def same(first: Quantized, second: Quantized) -> bool:
    one, other = first.checkpoint, second.checkpoint
    return one.tensors.keys() == other.tensors.keys() and all(
        np.array_equal(value, other.tensors[name]) for name, value in one.tensors.items()
    )


def test_of_a_whole_run(quantized: Quantized, parent: Checkpoint, recipe: Recipe, calibration: Calibration) -> None:
    header = quantized.checkpoint.header
    assert [block.name for block in header.blocks] == parent.build().unit_names()
    assert header.recipe.layers == recipe.layers
    assert len(header.recipe.starts) == 2
    assert header.provenance.parents == {"teacher": "0" * 64, "float": parent.header.digest}
    assert header.calibration == calibration.header.digest
    assert len(quantized.errors) == 4
    assert all(len(grids) == 2 for grids in quantized.grids.values())


class Stopped(Exception):  # noqa: N818 (nothing is wrong)
    pass


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the blocks whose roundings are being learnt."""
    names: list[str] = []
    learn = reconstruction._quantized

    def noted(block: Any, *arguments: Any) -> BlockResult:
        names.append(block.unit.name)
        return learn(block, *arguments)

    monkeypatch.setattr(reconstruction, "_quantized", noted)
    return names


def test_an_interrupted_run_comes_to_the_same(
    quantized: Quantized, parent: Checkpoint, recipe: Recipe, calibration: Calibration, learning: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """To the bit, and without learning a finished block again."""
    names, save = parent.build().unit_names(), _quantize._save_block

    def stop(folder: Path, key: str, result: BlockResult) -> None:
        save(folder, key, result)
        if result.name == names[3]:
            raise Stopped

    monkeypatch.setattr(_quantize, "_save_block", stop)
    with pytest.raises(Stopped):
        quantize(parent, recipe, calibration, tmp_path)
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert set(files) == {f"{name}.safetensors" for name in names[:4]}
    monkeypatch.setattr(_quantize, "_save_block", save)
    learning.clear()
    torch.manual_seed(7)
    said: list[tuple[str, int, int]] = []
    again = quantize(parent, recipe, calibration, tmp_path, lambda *state: said.append(state[:3]))
    assert same(again, quantized)
    assert again.checkpoint.header == quantized.checkpoint.header
    assert learning == names[4:]
    assert all((tmp_path / name).stat().st_mtime_ns == before for name, before in files.items())
    for stage in {stage for stage, *_ in said}:
        done = [count for of, count, _ in said if of == stage]
        assert done == sorted(done)
        assert done[-1] == next(total for of, _, total in said if of == stage)


def test_blocks_of_other_settings_are_not_taken(
    quantized: Quantized, parent: Checkpoint, recipe: Recipe, calibration: Calibration, blocks: Path, learning: list[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    folder = Path(shutil.copytree(blocks, tmp_path / "blocks"))
    (folder / "middle.0.safetensors").write_bytes(b"cut short")

    def run(wanted: Recipe) -> list[str]:
        learning.clear()
        quantize(parent, wanted, calibration, folder)
        return list(learning)

    names = parent.build().unit_names()
    assert run(recipe) == ["middle.0"]
    nearest = recipe.model_copy(update={"reconstruction": ReconstructionSettings(iterations=0)})
    assert run(nearest) == names
    assert run(nearest.with_bits({"conv_in": 7}, "tried")) == names


def test_a_model_that_was_never_trained_can_be_kept(make_model: MakeModel, learning: list[str], tmp_path: Path) -> None:
    """Its last convolution is 0, without an error whatever the bits; its figure is no infinity, which JSON does not have."""
    torch.manual_seed(0)
    model = SpectralUNet(make_model(image_size=8).config).eval()
    parent = Checkpoint.of(model, SCHEDULES["cosine"], "v", Provenance(made_by="train"))
    recipe = Recipe(
        model=model.config,
        steps=2,
        groups=1,
        reconstruction=ReconstructionSettings(iterations=1),
        layers=default_layers(model.config, 4, 8),
    )
    calibration = capture(model, plan_of(parent, recipe), CalibrationRequest(trajectories=2), parent.header.digest)
    result = quantize(parent, recipe, calibration, tmp_path)
    assert all(math.isfinite(block.before_db) for block in result.checkpoint.header.blocks)
    result.checkpoint.save(tmp_path / "model.safetensors")
    assert load_quantized(tmp_path / "model.safetensors").header == result.checkpoint.header
    learning.clear()
    quantize(parent, recipe, calibration, tmp_path)
    assert learning == []


def test_results_are_values(quantized: Quantized) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        quantized.plan = quantized.plan  # type: ignore[misc]
