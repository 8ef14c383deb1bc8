"""A plan of two programs: a bundle holds both over one set of weights, and every runtime calls the one of each row."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edge_sd.bundle import Bundle, open_bundle
from edge_sd.bundle.contract import METADATA_KEY, Contract, PlanSummary
from edge_sd.bundle.manifest import WEIGHTS
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES, compile_plan
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation.metrics import snr_db
from edge_sd.export import ExportRequest, export_bundle, swap_plan
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize._quantize import plan_of, quantize
from edge_sd.quantize.calibration import CalibrationRequest, capture
from edge_sd.quantize.checkpoint import QuantizedCheckpoint, load_quantized, packed
from edge_sd.quantize.layers import layers_of
from edge_sd.quantize.recipe import Recipe, default_layers
from edge_sd.quantize.reconstruction import ReconstructionSettings
from edge_sd.runtimes import find_runtime, load_denoiser, sample_bundle
from edge_sd.sampling import sample_model

MakeModel = Callable[..., SpectralUNet]
MakeQuantized = Callable[[tuple[int, ...]], QuantizedCheckpoint]
RUNTIMES = ("torch", "onnxruntime")


@pytest.fixture(scope="module")
def make_quantized(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> MakeQuantized:
    """Where groups of five steps begin → W4A8 to the nearest; 16 px, one level, attention over 256 tokens."""
    model = make_model(4, multipliers=(1,), attention=(1,), head_channels=4, gating=False)
    parent = Checkpoint.of(model, SCHEDULES["cosine"], "v", Provenance(made_by="train"))
    recipe = Recipe(
        model=model.config,
        steps=5,
        reconstruction=ReconstructionSettings(iterations=0),
        layers=default_layers(model.config, 4, 8),
    )
    inputs = capture(model, plan_of(parent, recipe), CalibrationRequest(trajectories=2), parent.header.digest)

    def make(starts: tuple[int, ...]) -> QuantizedCheckpoint:
        folder = tmp_path_factory.mktemp("blocks")
        return quantize(parent, recipe.model_copy(update={"starts": starts}), inputs, folder).checkpoint

    return make


@pytest.fixture(scope="module")
def quantized(make_quantized: MakeQuantized) -> QuantizedCheckpoint:
    return make_quantized((0, 2))


@pytest.fixture(scope="module")
def two(quantized: QuantizedCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("programs") / "two.edgesd"
    export_bundle(quantized, path, ExportRequest(("onnx",), steps=5, goldens=2, seed=3))
    return open_bundle(path)


@pytest.fixture(scope="module")
def one(make_quantized: MakeQuantized, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("programs") / "one.edgesd"
    export_bundle(make_quantized((0,)), path, ExportRequest(("onnx",), steps=5, goldens=1))
    return open_bundle(path)


# What is in it


def test_each_target_has_each_program_under_a_contract_of_its_own(two: Bundle) -> None:
    names = ("denoiser", "denoiser.1")
    assert two.plan.header.programs == names
    assert two.plan.program.tolist() == [0, 0, 1, 1, 1]
    assert [contract.program for contract in two.manifest.contracts] == list(names)
    assert {contract.plan for contract in two.manifest.contracts} == {PlanSummary.of(two.plan)}
    held = {(program.target, program.name) for program in two.manifest.programs}
    assert held == {(target, name) for target in ("torch", "onnx") for name in names}
    for name in names:
        model = onnx.load(two.path / two.program("onnx", name).file, load_external_data=False)
        inside = {entry.key: entry.value for entry in model.metadata_props}[METADATA_KEY]
        assert Contract.model_validate_json(inside) == two.manifest.contract(name)


def test_weights_are_there_once(two: Bundle, one: Bundle, quantized: QuantizedCheckpoint) -> None:
    """Both programs' integers and larger values are the same bytes of one file; a bundle of one needs none."""
    assert WEIGHTS in two.manifest.files
    assert WEIGHTS not in one.manifest.files
    places: list[dict[str, dict[str, str]]] = []
    for name in ("denoiser", "denoiser.1"):
        model = onnx.load(two.path / f"{name}.onnx", load_external_data=False)
        outside = [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
        places.append({tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in outside})
        assert all(len(tensor.raw_data) == 0 for tensor in outside)
    codes = {name for name in places[0] if name.endswith(".codes")}
    assert codes == {
        f"model.{name}" for name, value in quantized.tensors.items() if name.endswith("codes") and value.nbytes >= 256
    }
    assert codes
    assert all(places[0][name] == places[1][name] for name in codes)
    assert {place["location"] for of in places for place in of.values()} == {WEIGHTS}
    size = (two.path / WEIGHTS).stat().st_size
    used = {(int(place["offset"]), int(place["length"])) for of in places for place in of.values()}
    assert size == max(offset + length for offset, length in used)
    assert sum(length for _, length in used) > size - 64 * len(used)
    assert all(offset % 64 == 0 for offset, _ in used)


def test_four_bit_integers_are_the_checkpoints(two: Bundle, quantized: QuantizedCheckpoint) -> None:
    from onnx import numpy_helper

    model = onnx.load(two.path / "denoiser.1.onnx")
    found, form = {tensor.name: tensor for tensor in model.graph.initializer}, quantized.build()
    narrow = 0
    for name, layer in layers_of(form).items():
        tensor = found[f"model.{name}.codes"]
        assert layer.codes is not None
        np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int8), layer.codes.numpy())
        if quantized.header.recipe.layers[name].bits == 4:
            narrow += 1
            assert tensor.data_type == TensorProto.INT4
            assert tensor.raw_data == packed(layer.codes.numpy()).tobytes()
            np.testing.assert_array_equal(np.frombuffer(tensor.raw_data, np.uint8), quantized.tensors[f"{name}.codes"])
    assert narrow > 10


def test_bits_are_told_of_each_program(two: Bundle, quantized: QuantizedCheckpoint) -> None:
    for name in ("denoiser", "denoiser.1"):
        layers = {layer.layer: layer for layer in two.program("onnx", name).layers}
        for layer, part in layers_of(quantized.build()).items():
            wanted = quantized.header.recipe.layers[layer]
            assert layers[layer].weights == np.prod(part.shape)
            assert (layers[layer].requested, layers[layer].stored) == (wanted.bits, wanted.bits)
            if wanted.input is None:
                assert layers[layer].computed == "float32"
        assert sum(layer.computed == "int8" for layer in layers.values()) > 10


# Calling it


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_program_of_each_row_is_called(runtime: str, two: Bundle) -> None:
    chosen = find_runtime(runtime)
    session = load_denoiser(chosen, two)
    alone = {name: chosen.load(two, program=name) for name in two.plan.header.programs}
    assert session.sample_shape == (3, 16, 16)
    golden = two.golden.trajectories[0]
    for row in range(5):
        program = int(two.plan.program[row])
        given = (golden.samples[row : row + 1], golden.features[row : row + 1])
        session.select(program)
        found = session(*given)
        right, wrong = (alone[two.plan.header.programs[index]](*given) for index in (program, 1 - program))
        np.testing.assert_array_equal(found, right)
        assert np.abs(found - wrong).max() > 1e-5


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_programs_may_be_called_in_any_order(runtime: str, two: Bundle) -> None:
    session, golden = load_denoiser(find_runtime(runtime), two), two.golden.trajectories[1]
    found: dict[int, list[np.ndarray]] = {0: [], 1: []}
    for program in (1, 0, 0, 1, 0):
        session.select(program)
        found[program].append(session(golden.samples[:1], golden.features[:1]))
    assert all(np.array_equal(of[0], other) for of in found.values() for other in of)


def test_goldens_are_the_simulations_of_the_plan(two: Bundle, quantized: QuantizedCheckpoint) -> None:
    model = quantized.build()
    plan = quantized.plan_for("dpmpp", 5)
    drawn = sample_model(model, plan, seed=3, count=2, batch_size=1)
    for index, golden in enumerate(two.golden.trajectories):
        np.testing.assert_allclose(golden.final, drawn[index], atol=1e-5)
    first = sample_model(model, plan.with_programs([0]), seed=3, count=1)
    assert np.abs(first - drawn[:1]).max() > 1e-4


def test_onnx_runtime_says_what_torch_says(two: Bundle) -> None:
    """Step by step, the golden sample given; what is left are ties, carried on through all layers."""
    session = load_denoiser(find_runtime("onnxruntime"), two)
    for golden in two.golden.trajectories:
        for row in range(5):
            session.select(int(two.plan.program[row]))
            found = session(golden.samples[row : row + 1], golden.features[row : row + 1])[0]
            assert snr_db(golden.predictions[row], found) > 20
    drawn = sample_bundle(session, two.plan, seed=3, count=2)
    assert min(snr_db(golden.final, sample) for golden, sample in zip(two.golden.trajectories, drawn, strict=True)) > 20


# What is refused, and another plan


def test_shared_weights_that_changed(two: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(two.path, tmp_path / "two.edgesd"))
    damaged = bytearray((copy / WEIGHTS).read_bytes())
    damaged[100] ^= 1
    (copy / WEIGHTS).write_bytes(bytes(damaged))
    with pytest.raises(EdgeSDError, match=r"weights\.bin has changed"):
        open_bundle(copy)


def test_a_plan_of_other_steps_than_the_groups(quantized: QuantizedCheckpoint, two: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="quantized for 5 steps of dpmpp"):
        export_bundle(quantized, tmp_path / "new.edgesd", ExportRequest(("onnx",), steps=4))
    plan = compile_plan(two.manifest.noise_schedule, 4, prediction="v")
    with pytest.raises(UsageError, match="in groups of the steps of its own plan"):
        swap_plan(two, plan, tmp_path / "new.edgesd")
    assert not list(tmp_path.iterdir())


def test_one_program_takes_another_plan(one: Bundle, tmp_path: Path) -> None:
    plan = compile_plan(one.manifest.noise_schedule, 3, solver="ddim", prediction="v")
    new = open_bundle(swap_plan(one, plan, tmp_path / "new.edgesd").path)
    assert (new.plan.header.solver, new.plan.header.programs, len(new.plan)) == ("ddim", ("denoiser",), 3)
    session, golden = load_denoiser(find_runtime("onnxruntime"), new), new.golden.trajectories[0]
    for row in range(3):
        found = session(golden.samples[row : row + 1], golden.features[row : row + 1])[0]
        assert snr_db(golden.predictions[row], found) > 20
    assert load_quantized(new.path / "reference.safetensors").header.digest == new.manifest.weights_digest
