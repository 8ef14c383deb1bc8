"""The Core ML target: an .mlpackage (ML program), in half or single precision; of a quantized model, with its integers inside."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch._ops import OpOverload
from torch.export import ExportedProgram

from edge_sd.bundle.contract import METADATA_KEY, Contract
from edge_sd.bundle.placement import Placement
from edge_sd.errors import EdgeSDError
from edge_sd.export._mil import NARROW, OPERATOR, Held, by_rows, layer_bits, refusals, translatable
from edge_sd.export._target import Exported, Source, Target, TargetOptions
from edge_sd.files import write_bytes
from edge_sd.quiet import quiet
from edge_sd.runnable import Availability, packages_available

# Where a package keeps its program, its interface and its metadata.
_SPEC = "Data/com.apple.CoreML/model.mlmodel"
# For ExecuTorch's debugger, as large as a small model's weights.
_HANDLES = "executorch_debug_handle_mapping.json"
_DECOMPOSED: WeakKeyDictionary[ExportedProgram, ExportedProgram] = WeakKeyDictionary()
_FUNCTIONS_FROM = _BLOCKS_FROM = "iOS18"
# Passes that change what a quantized program computes: the first gives an activation the grid of the next one behind a reshape,
# the second divides the grids of a sum by each other.
_INEXACT = ("common::int_op_canonicalization", "common::distributive_quantized_binary_op_scale_normalization")


class CoreMLTarget(Target):
    """Inputs and outputs are float32 whatever the precision inside, so that every format keeps one contract."""

    name = "coreml"
    about = "Core ML .mlpackage, float16 or float32; runs on Apple systems"
    rewrites = ("folded-attention", "matmul-attention", "depthwise-wavelet-down", "butterfly-wavelet-up", "folded-haar-up")
    quantized_rewrites = ("folded-haar-up",)

    def available(self) -> Availability:
        return packages_available("coremltools")

    def check(self, sources: Sequence[Source], options: TargetOptions) -> list[str]:
        with quiet():
            from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
        _register()
        problems = []
        for source in sources:
            targets = {node.target for node in _decomposed(source).graph.nodes if node.op == "call_function"}
            missing = sorted(
                str(target)
                for target in targets
                if isinstance(target, OpOverload) and _TORCH_OPS_REGISTRY.get_func(target.name()) is None
            )
            problems += [f"{source.name}: operator {name} has no Core ML counterpart" for name in missing]
        recipe = next((source.recipe for source in sources if source.recipe is not None), None)
        return problems + ([] if recipe is None else refusals(recipe, options.coreml_os))

    def export(self, sources: Sequence[Source], options: TargetOptions, folder: Path) -> dict[str, Exported]:
        _register()
        packages = {source.name: folder / f"{source.name}.mlpackage" for source in sources}
        for source in sources:
            _convert(source, options, packages[source.name])
        entries = dict.fromkeys(packages, "")
        if len(sources) > 1 and options.coreml_os >= _FUNCTIONS_FROM:
            merged = folder / "programs.mlpackage"
            _merge(packages, merged)
            packages, entries = dict.fromkeys(packages, merged), {name: name for name in packages}
        held: dict[str, list[Held]] = {}
        for package in dict.fromkeys(packages.values()):
            contracts = [source.contract for source in sources if packages[source.name] == package]
            _embed(package, contracts)
            held |= _validate(package, contracts)
        return {
            source.name: _exported(source, options, packages[source.name], entries[source.name], held[source.name])
            for source in sources
        }

    def value_bytes(self, program: str, options: TargetOptions) -> int:
        return 2 if _half(program, options) else 4

    def stamp(self, file: Path, contracts: Sequence[Contract]) -> None:
        held = {entry["program"] for entry in json.loads(_read(file).description.metadata.userDefined[METADATA_KEY])}
        _embed(file, [contract for contract in contracts if contract.program in held])


def _exported(source: Source, options: TargetOptions, package: Path, entry: str, held: Sequence[Held]) -> Exported:
    half = _half(source.name, options)
    layers, off = layer_bits(source, held, half=half)
    described: dict[str, str] = {"precision": options.coreml_precision, "os": options.coreml_os}
    if layers:
        described["scales"] = f"float16, off by {off:.2%} at most" if half else "float32, exact"
    place = Placement(delegate="Core ML", delegate_calls=0, note="decided on the device; not known here")
    return Exported(package.name, entry, described, place, layers)


def _half(program: str, options: TargetOptions) -> bool:
    """Time features are never in half precision: temporal's sines and cosines of large angles would be wrong."""
    return options.coreml_precision == "fp16" and program != "temporal"


def _decomposed(source: Source) -> ExportedProgram:
    """The program in the operators that are translated, made once for the check and the export."""
    program = _DECOMPOSED.get(source.exported)
    if program is None:
        with quiet():
            program = source.exported.run_decompositions({})
        if source.recipe is not None:
            translatable(program)
        _DECOMPOSED[source.exported] = program
    return program


def _register() -> None:
    """Teach the front end the one operator of ours: integers and scales become a constant that is unpacked on the device."""
    with quiet():
        from coremltools import target
        from coremltools.converters.mil import Builder
        from coremltools.converters.mil.frontend.torch.ops import _get_inputs
        from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
        from coremltools.converters.mil.mil import types
        from coremltools.converters.mil.mil.block import is_current_opset_version_compatible_with

    def restored(context: Any, node: Any) -> None:
        codes, scales, low, high = (value.val for value in _get_inputs(context, node, expected=4))
        if is_current_opset_version_compatible_with(getattr(target, _BLOCKS_FROM)):
            if high - low < 2**NARROW:
                codes = codes.astype(types.nptype_from_builtin(types.int4))
            column = scales.reshape(*scales.shape, *([1] * (codes.ndim - 2)))
            made = Builder.constexpr_blockwise_shift_scale(data=codes, scale=column, name=node.name)
        else:
            made = Builder.constexpr_affine_dequantize(
                quantized_data=codes, scale=scales[:, 0], zero_point=np.int8(0), axis=np.int32(0), name=node.name
            )
        context.add(made)

    _TORCH_OPS_REGISTRY.set_func_by_name(restored, OPERATOR)


def _convert(source: Source, options: TargetOptions, package: Path) -> None:
    with quiet():
        import coremltools

        passes = coremltools.PassPipeline.DEFAULT
        if source.recipe is not None:
            passes.remove_passes(_INEXACT)
        try:
            model = coremltools.convert(
                _decomposed(source),
                convert_to="mlprogram",
                outputs=[coremltools.TensorType(name=spec.name, dtype=np.float32) for spec in source.contract.outputs],
                minimum_deployment_target=getattr(coremltools.target, options.coreml_os),
                compute_precision=coremltools.precision.FLOAT16 if _half(source.name, options) else coremltools.precision.FLOAT32,
                pass_pipeline=passes,
                skip_model_load=True,
            )
            model.save(str(package))
            (package / _HANDLES).unlink(missing_ok=True)
        except OSError as error:  # shutil's is a list of (from, to, reason)
            reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error
            raise EdgeSDError(
                f"cannot write the Core ML package of the {source.name}: {reason}", "free some space, or choose another -o"
            ) from error
        except Exception as error:  # its front end raises whatever an operator's translation stumbles over
            raise EdgeSDError(
                f"Core ML Tools cannot convert the {source.name}: {str(error).strip().splitlines()[0]}",
                "edge-sd export --dry-run names operators that are not supported",
            ) from error


def _merge(packages: dict[str, Path], merged: Path) -> None:
    """Put several packages into one whose functions bear the programs' names; equal weights are stored once."""
    with quiet():
        from coremltools.models.utils import MultiFunctionDescriptor, save_multifunction

        descriptor = MultiFunctionDescriptor()
        for name, package in packages.items():
            descriptor.add_function(str(package), src_function_name="main", target_function_name=name)
        descriptor.default_function_name = "denoiser"
        save_multifunction(descriptor, str(merged))
    for package in packages.values():
        shutil.rmtree(package)


def _read(package: Path) -> Any:
    with quiet():
        from coremltools.proto import Model_pb2

    return Model_pb2.Model.FromString((package / _SPEC).read_bytes())


def _embed(package: Path, contracts: Sequence[Contract]) -> None:
    spec = _read(package)
    texts = [contract.model_dump(mode="json") for contract in contracts]
    spec.description.metadata.userDefined[METADATA_KEY] = json.dumps(texts, separators=(",", ":"))
    write_bytes(package / _SPEC, spec.SerializeToString())


def _validate(package: Path, contracts: Sequence[Contract]) -> dict[str, list[Held]]:
    """Read the saved package back: the program must parse with its weights, the interface must be the contract's.

    Returns:
        What each program holds as integers.
    """
    with quiet():
        import coremltools
        from coremltools.converters.mil.frontend.milproto.load import load

        model = coremltools.models.MLModel(str(package), skip_model_load=True)
        spec = model.get_spec()
        program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
        described = {function.name: function for function in spec.description.functions} or {"": spec.description}
    held = {}
    for contract in contracts:
        found = described.get(contract.program) or described[""]
        for specs, features in ((contract.inputs, found.input), (contract.outputs, found.output)):
            ours = [(item.name, item.shape) for item in specs]
            theirs = [(item.name, tuple(item.type.multiArrayType.shape)) for item in features]
            if ours != theirs:
                raise EdgeSDError(
                    f"the Core ML package of the {contract.program} has {theirs}, its contract says {ours}",
                    "edge-sd doctor shows the versions that were tested together",
                )
        function = program.functions.get(contract.program) or program.functions["main"]
        held[contract.program] = [found for operation in function.operations if (found := _held(operation)) is not None]
    return held


def _held(operation: Any) -> Held | None:
    if operation.op_type == "constexpr_blockwise_shift_scale":
        data = operation.data
    elif operation.op_type == "constexpr_affine_dequantize":
        data = operation.quantized_data
    else:
        return None
    return Held(data.val.astype(np.int8), by_rows(data.val, operation.scale.val), data.dtype.get_bitwidth())
