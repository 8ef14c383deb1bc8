"""Whole models as saved Core ML packages, evaluated, against the PyTorch that they were converted from.

In single precision they agree to 1e-5. Of compressed packages the unpacked weights are put back into the PyTorch model first, so
that it is held to the same 1e-5; how far those weights may lie from the original ones follows from their bits.
"""

import copy
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_sd.bundle import Bundle
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES
from edge_sd.errors import EdgeSDError
from edge_sd.evaluation import snr_db
from edge_sd.export import ExportRequest, TargetOptions, export_bundle
from edge_sd.models.presets import PRESETS
from edge_sd.models.unet import SpectralUNet
from edge_sd.quiet import quiet
from edge_sd.runtimes import find_runtime
from edge_sd.runtimes.coreml_reference import CoreMLReferenceRuntime
from edge_sd.runtimes.mil import Evaluator, load_evaluator

with quiet():
    import coremltools
    import coremltools.optimize.coreml as compression

MakeModel = Callable[..., SpectralUNet]
SYSTEMS = ("iOS16", "iOS17", "iOS18")
EXACT = 1e-5  # largest difference in single precision


def error(found: np.ndarray, expected: Tensor | np.ndarray) -> float:
    return float(np.abs(found - np.asarray(expected)).max())


# Our own models, by our own export


def exported(make_model: MakeModel, preset: str, folder: Path, system: str, precision: str, **changes: Any) -> Bundle:
    config = {**PRESETS[preset].config.model_dump(), **changes}
    checkpoint = Checkpoint.of(make_model(3, **config), SCHEDULES["ldm"], "epsilon", Provenance(made_by="train"))
    options = TargetOptions(coreml_os=system, coreml_precision=precision)  # type: ignore[arg-type]
    request = ExportRequest(("coreml",), options, steps=3, goldens=1, temporal=system == "iOS18")
    return export_bundle(checkpoint, folder / f"{preset}-{system}-{precision}.edgesd", request)


def worst(bundle: Bundle) -> float:
    """Over every step of the trajectory."""
    session, (golden,) = CoreMLReferenceRuntime().load(bundle), bundle.golden.trajectories
    found = [session(golden.samples[row : row + 1], golden.features[row : row + 1]) for row in range(len(bundle.plan))]
    return error(np.concatenate(found), golden.predictions)


@pytest.fixture(scope="module")
def student(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """For iOS 18: with the program `temporal` beside it in one package."""
    return exported(make_model, "tiny16", tmp_path_factory.mktemp("student"), "iOS18", "fp32")


def test_a_gated_student(student: Bundle) -> None:
    assert student.manifest.model.gating
    assert student.program("coreml").entry == "denoiser"
    assert worst(student) <= EXACT
    temporal, (golden,) = CoreMLReferenceRuntime().load(student, program="temporal"), student.golden.trajectories
    rows = [temporal(np.array([step], np.float32)) for step in student.plan.timestep]
    assert error(np.concatenate(rows), golden.features) <= EXACT


@pytest.mark.parametrize("system", ["iOS16", "iOS17"])
def test_a_gated_student_for_older_systems(system: str, make_model: MakeModel, tmp_path: Path) -> None:
    bundle = exported(make_model, "tiny16", tmp_path, system, "fp32")
    assert bundle.program("coreml").entry == ""
    assert worst(bundle) <= EXACT


def test_a_gated_student_in_half_precision(make_model: MakeModel, tmp_path: Path) -> None:
    """What half precision costs is seen, and is what halves cost: some 60 dB."""
    bundle = exported(make_model, "tiny16", tmp_path, "iOS17", "fp16")
    session, (golden,) = CoreMLReferenceRuntime().load(bundle), bundle.golden.trajectories
    db = snr_db(golden.predictions[:1], session(golden.samples[:1], golden.features[:1]))
    assert 50 < db < 80


def test_ldm_4(make_model: MakeModel, tmp_path: Path) -> None:
    """The published configuration, narrower and smaller: four levels, two blocks, attention on three of them."""
    bundle = exported(make_model, "ffhq-ldm", tmp_path, "iOS17", "fp32", width=32, image_size=16)
    assert bundle.manifest.model.multipliers == (1, 2, 3, 4)
    assert worst(bundle) <= EXACT


# Other people's models, converted by coremltools


@dataclass
class Foreign:
    """A module with what it is called with."""

    module: nn.Module
    example: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        self.module.eval()
        with quiet():
            self._program = torch.export.export(self.module, self.example).run_decompositions({})

    def expected(self, module: nn.Module | None = None) -> Tensor:
        with torch.no_grad():
            found: Tensor = (module or self.module)(*self.example)
        return found

    def convert(self, system: str, precision: str) -> Any:
        with quiet():
            return coremltools.convert(
                self._program,
                convert_to="mlprogram",
                outputs=[coremltools.TensorType(name="out", dtype=np.float32)],
                minimum_deployment_target=getattr(coremltools.target, system),
                compute_precision=getattr(coremltools.precision, precision),
                skip_model_load=True,
            )

    def evaluated(self, model: Any, path: Path) -> tuple[Evaluator, np.ndarray]:
        with quiet():
            model.save(str(path))
        evaluator = load_evaluator(path)
        return evaluator, evaluator(self.inputs(evaluator))["out"]

    def inputs(self, evaluator: Evaluator) -> dict[str, np.ndarray]:
        return dict(zip(evaluator.inputs, (value.numpy() for value in self.example), strict=True))


class _Called(nn.Module):
    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model, self._method = model, method

    def forward(self, *inputs: Tensor) -> Tensor:
        found: Tensor = getattr(self.model, self._method)(*inputs, return_dict=False)[0]
        return found


@pytest.fixture(scope="module")
def unet() -> Foreign:
    """Stable Diffusion's class: time, text, resampling, skips."""
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8, attention_head_dim=4,
        norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return Foreign(_Called(model, "forward"), (torch.randn(1, 4, 8, 8), torch.tensor([37.0]), torch.randn(1, 5, 8)))


def tiny_decoder() -> Foreign:
    torch.manual_seed(1)
    model = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(2, 1), latent_channels=4,
    )  # fmt: skip
    return Foreign(_Called(model, "decode"), (torch.randn(1, 4, 8, 8),))


def kl_decoder() -> Foreign:
    torch.manual_seed(2)
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4, latent_channels=4,
    )  # fmt: skip
    return Foreign(_Called(model, "decode"), (torch.randn(1, 4, 8, 8),))


@pytest.fixture(scope="module", params=SYSTEMS)
def unet_package(request: pytest.FixtureRequest, unet: Foreign) -> tuple[str, Any]:
    """In single precision; compressed below."""
    return request.param, unet.convert(request.param, "FLOAT32")


def test_a_unet_of_diffusers(unet: Foreign, unet_package: tuple[str, Any], tmp_path: Path) -> None:
    evaluator, found = unet.evaluated(unet_package[1], tmp_path / "unet.mlpackage")
    assert error(found, unet.expected()) <= EXACT
    attention = "scaled_dot_product_attention" in evaluator.operators.values()
    assert attention is (unet_package[0] == "iOS18")


@pytest.fixture(scope="module")
def half_package(unet: Foreign) -> Any:
    return unet.convert("iOS18", "FLOAT16")


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_unet_of_diffusers_in_half_precision(system: str, unet: Foreign, tmp_path: Path) -> None:
    """The weights are torch's halves to the bit; what is left comes of rounding after each operator."""
    evaluator, found = unet.evaluated(unet.convert(system, "FLOAT16"), tmp_path / "unet.mlpackage")
    state = dict(unet.module.state_dict())
    weights = {f"p_{name.replace('.', '_')}_to_fp16": value for name, value in state.items()}
    values = evaluator.values(unet.inputs(evaluator), sorted(weights.keys() & evaluator.operators.keys()))
    assert len(values) > 50
    for name, value in values.items():
        np.testing.assert_array_equal(value, weights[name].half().numpy())
    expected = unet.expected(with_weights(unet, {name: value.half().numpy() for name, value in state.items()}))
    assert 1e-5 < error(found, expected) < 3e-3 * float(expected.abs().max())
    assert snr_db(expected.numpy(), found) > 50


@pytest.mark.parametrize("make", [tiny_decoder, kl_decoder])
def test_a_decoder_of_diffusers(make: Callable[[], Foreign], tmp_path: Path) -> None:
    decoder = make()
    _, found = decoder.evaluated(decoder.convert("iOS17", "FLOAT32"), tmp_path / "decoder.mlpackage")
    assert found.shape[1] == 3
    assert error(found, decoder.expected()) <= EXACT


# Compressed weights: nearest on their grids, and nothing else differs


def eight_bits(model: Any) -> Any:
    settings = compression.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", weight_threshold=64)
    return compression.linear_quantize_weights(model, compression.OptimizationConfig(settings))


def table_of_four_bits(model: Any) -> Any:
    settings = compression.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=64)
    return compression.palettize_weights(model, compression.OptimizationConfig(settings))


def blocks_of_four_bits(model: Any) -> Any:
    settings = compression.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=4, weight_threshold=64
    )
    return compression.linear_quantize_weights(model, compression.OptimizationConfig(settings))


def largest(weight: np.ndarray, block: int) -> np.ndarray:
    """Of each output channel, or of `block` of its input channels. => broadcasts over the weight"""
    size = np.abs(weight).reshape(len(weight), weight.shape[1] // block, -1).max(2)
    return np.repeat(size, block, 1).reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))


def unpacked_weights(unet: Foreign, evaluator: Evaluator) -> dict[str, np.ndarray]:
    """By the names that PyTorch has for them."""
    made = [name for name, operator in evaluator.operators.items() if operator.startswith("constexpr_")]
    names = {f"p_{name.replace('.', '_')}": name for name in unet.module.state_dict()}
    values = evaluator.values(unet.inputs(evaluator), made)
    return {names[re.sub("(_to_fp16)?_(quantized|palettized)$", "", name)]: value for name, value in values.items()}


def with_weights(unet: Foreign, weights: dict[str, np.ndarray]) -> nn.Module:
    """A copy of the module that has these in place of its own."""
    same = copy.deepcopy(unet.module)
    same.load_state_dict({**same.state_dict(), **{name: torch.from_numpy(value).float() for name, value in weights.items()}})
    return same


@pytest.mark.parametrize("compress", [eight_bits, table_of_four_bits, blocks_of_four_bits])
def test_a_compressed_unet(compress: Callable[[Any], Any], unet: Foreign, unet_package: tuple[str, Any], tmp_path: Path) -> None:
    system, model = unet_package
    if compress is blocks_of_four_bits and system != "iOS18":
        with pytest.raises(Exception, match="iOS18"), quiet():
            compress(model)
        return
    with quiet():
        compressed = compress(model)
    evaluator, found = unet.evaluated(compressed, tmp_path / "unet.mlpackage")
    state, unpacked = dict(unet.module.state_dict()), unpacked_weights(unet, evaluator)
    assert len(unpacked) > 20
    for name, value in unpacked.items():
        original = state[name].numpy()
        assert value.shape == original.shape
        if compress is table_of_four_bits:
            assert len(np.unique(value)) <= 16
            allowed: Any = (original.max() - original.min()) / 15 / 2
        else:
            # Of 2·127 + 1 or 2·7 + 1 steps between a channel's (or block's) largest and its negative.
            steps, wide = (127, original.shape[1]) if compress is eight_bits else (7, 4)
            allowed = largest(original, wide if original.shape[1] % wide == 0 else original.shape[1]) / steps / 2
        assert np.all(np.abs(value - original) <= 1.02 * allowed + 1e-7), name
    assert error(found, unet.expected(with_weights(unet, unpacked))) <= EXACT
    assert error(found, unet.expected()) > 100 * EXACT


@pytest.mark.parametrize("compress", [eight_bits, table_of_four_bits, blocks_of_four_bits])
def test_a_compressed_unet_in_half_precision(
    compress: Callable[[Any], Any], unet: Foreign, half_package: Any, tmp_path: Path
) -> None:
    """Tables and scales are halves, too; against torch with the weights that they make."""
    with quiet():
        compressed = compress(half_package)
    evaluator, found = unet.evaluated(compressed, tmp_path / "unet.mlpackage")
    unpacked = unpacked_weights(unet, evaluator)
    assert {value.dtype.name for value in unpacked.values()} == {"float16"}
    expected = unet.expected(with_weights(unet, unpacked))
    assert snr_db(expected.numpy(), found) > 50
    assert snr_db(expected.numpy(), found) > 6 + snr_db(unet.expected().numpy(), found)


# The runtime


def test_it_is_never_called_core_ml_alone() -> None:
    runtime = find_runtime("coreml-reference")
    assert runtime.about.startswith("Core ML reference evaluation")
    assert "torch" in runtime.available().detail


def test_a_contract_of_another_export_is_refused(student: Bundle) -> None:
    denoiser, *others = student.manifest.contracts
    plan = denoiser.plan.model_copy(update={"digest": "0" * 64})
    manifest = student.manifest.model_copy(update={"contracts": (denoiser.model_copy(update={"plan": plan}), *others)})
    foreign = Bundle(student.path, manifest, student.plan, student.golden)
    with pytest.raises(EdgeSDError, match=r"contract .* is not the manifest's of the denoiser"):
        CoreMLReferenceRuntime().load(foreign)


@pytest.mark.parametrize("damage", ["cut", "missing", "garbage"])
def test_a_damaged_package_is_an_error_with_a_hint(damage: str, student: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "student.edgesd"
    shutil.copytree(student.path, path)
    package = path / student.program("coreml").file
    weights, model = package / "Data/com.apple.CoreML/weights/weight.bin", package / "Data/com.apple.CoreML/model.mlmodel"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 3])
    elif damage == "missing":
        weights.unlink()
    else:
        model.write_bytes(b"\xff" * 100)
    with pytest.raises(EdgeSDError, match=str(package)) as caught:
        CoreMLReferenceRuntime().load(Bundle(path, student.manifest, student.plan, student.golden))
    assert caught.value.hint
