"""NNCF as an engine: `nncf.quantize` of an exported ONNX denoiser, its statistics taken from our calibration inputs.

What its post-training quantization has for ONNX is 8 bits, one grid for all steps. Of fewer bits `nncf.compress_weights` makes
weights of MatMul and Gemm alone: 1 % of the emoji model's, the rest are convolutions'. (And INT4 at opset 18 does not load.)
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_sd.errors import EdgeSDError, InstallationError, UsageError
from edge_sd.files import write_bytes
from edge_sd.quiet import quiet

if TYPE_CHECKING:
    from edge_sd.quantize.calibration import Calibration

# What NNCF itself takes where nobody says otherwise.
INPUTS = 300
# From opset 21 on it writes `output_dtype` INT8 beside a UINT8 zero point, which ONNX Runtime refuses to load.
_NEWEST_OPSET = 20


def nncf_quantize(
    onnx_file: Path,
    calibration: "Calibration",
    out_file: Path,
    *,
    bits: int = 8,
    activations: int | None = 8,
    inputs: int = INPUTS,
    ranges: Literal["mean", "minmax"] = "mean",
) -> None:
    """Write the INT8 form of an exported float denoiser; its contract stays inside.

    Args:
        inputs: calibration inputs at most, spread evenly over the steps.
        ranges: of activations: the mean of each input's own (NNCF's default; it clips steps that differ from the others), or what
            holds them all.

    Raises:
        UsageError: bits that NNCF does not have, an opset whose result would not load, or a program or calibration inputs that
            do not belong together.
        InstallationError: NNCF is not installed.
        EdgeSDError: NNCF fails, or ONNX Runtime does not run what it made.
    """
    _check_bits(bits, activations)
    feeds = calibration_feeds(calibration, inputs)
    nncf = _import_nncf()
    import onnx

    try:
        model = onnx.load(onnx_file)
    except Exception as error:  # protobuf's own errors have no common base
        raise EdgeSDError(f"cannot read {onnx_file}: {error}", "give the denoiser.onnx of a bundle") from error
    _check_program(model, onnx_file, feeds)
    try:
        with quiet():
            quantized = nncf.quantize(
                model,
                nncf.Dataset(feeds),
                preset=nncf.QuantizationPreset.MIXED,
                target_device=nncf.TargetDevice.CPU,
                subset_size=len(feeds),
                advanced_parameters=_parameters(nncf, ranges),
            )
    except Exception as error:  # nncf.ValidationError, ONNX Runtime's and whatever its passes run into
        raise EdgeSDError(f"NNCF cannot quantize {onnx_file}: {error}", "edge-sd quantize without --engine nncf") from error
    _check_runs(quantized, feeds[0])
    write_bytes(out_file, quantized.SerializeToString())


def calibration_feeds(calibration: "Calibration", inputs: int = INPUTS) -> list[dict[str, NDArray[np.float32]]]:
    """Calibration inputs as an ONNX denoiser takes them, batch 1, spread evenly over the steps.

    Raises:
        UsageError: one is not finite, or there is none.
    """
    if inputs < 1 or not len(calibration):
        raise UsageError(f"{inputs} of {len(calibration)} calibration inputs are none", "give at least one")
    # A step's inputs lie side by side, so that the first few hundred would be of the first few steps.
    chosen = np.unique(np.linspace(0, len(calibration) - 1, min(inputs, len(calibration))).round().astype(np.int64))
    feeds = [{"sample": calibration.samples[i][None], "time_features": calibration.features[i][None]} for i in chosen]
    for i, feed in zip(chosen, feeds, strict=True):
        for name, value in feed.items():
            if not np.isfinite(value).all():
                raise UsageError(
                    f"calibration input {i} (step {calibration.rows[i]}): {name} holds a NaN or an infinity",
                    "capture the inputs again: is the checkpoint a trained one?",
                )
    return feeds


def _check_bits(bits: int, activations: int | None) -> None:
    if bits == 8 and activations == 8:
        return
    wanted = f"W{bits}A{activations or 'float'}"
    why = "weights and activations of 8 bits"
    if bits < 8:
        why += "; of fewer bits it has the weights of MatMul and Gemm alone, not those of convolutions"
    if activations != 8:
        why += "; its activations are 8 bits wide"
    raise UsageError(f"NNCF has no {wanted} for ONNX: it has {why}", "--bits 8 --activations 8, or leave --engine nncf out")


def _check_program(model: Any, onnx_file: Path, feeds: list[dict[str, NDArray[np.float32]]]) -> None:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset > _NEWEST_OPSET:
        raise UsageError(
            f"{onnx_file} has opset {opset}: what NNCF makes of it does not load in ONNX Runtime", "export with --onnx-opset 18"
        )
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise UsageError(f"{onnx_file} is quantized already", "give the float denoiser.onnx")
    ours = {name: value.shape for name, value in feeds[0].items()}
    theirs = {
        value.name: tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim) for value in model.graph.input
    }
    if ours != theirs:
        raise UsageError(f"{onnx_file} takes {theirs}, the calibration inputs are {ours}", "give both of one model")


def _check_runs(model: Any, feed: dict[str, NDArray[np.float32]]) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        out: NDArray[np.float32] = session.run(None, feed)[0]
    except Exception as error:  # its exceptions have no common base of their own
        raise EdgeSDError(f"ONNX Runtime does not run what NNCF made: {error}", "export with --onnx-opset 18") from error
    if not np.isfinite(out).all():
        raise EdgeSDError("what NNCF made puts out a NaN or an infinity", "is the checkpoint a trained one?")


def _parameters(nncf: Any, ranges: Literal["mean", "minmax"]) -> Any:
    if ranges == "mean":
        return None
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    return nncf.AdvancedQuantizationParameters(activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX)


def _import_nncf() -> Any:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when ONNX Runtime is first imported
    try:
        with _without_telemetry(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import nncf
            import nncf.onnx.quantization.quantize_model
    except ImportError as error:
        raise InstallationError(f"NNCF cannot be imported: {error}", 'pip install "edge-sd[nncf]"') from error
    return nncf


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """NNCF reports home unless it is imported on a build server: NNCF_CI for what it sends, CI for files it would make."""
    before = {name: os.environ.get(name) for name in ("NNCF_CI", "CI")}
    os.environ.update(NNCF_CI="1", CI="true")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
