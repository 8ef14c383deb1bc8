"""The Core ML target: an .mlpackage (ML program), in half or single precision."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_sd.bundle.contract import METADATA_KEY, Contract
from edge_sd.bundle.placement import Placement
from edge_sd.errors import EdgeSDError
from edge_sd.export._target import Exported, Source, Target, TargetOptions
from edge_sd.files import write_bytes
from edge_sd.quiet import quiet
from edge_sd.runnable import Availability, packages_available

# Where a package keeps its program, its interface and its metadata.
_SPEC = "Data/com.apple.CoreML/model.mlmodel"
_FUNCTIONS_FROM = "iOS18"


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
        problems = []
        for source in sources:
            with quiet():
                nodes = source.exported.run_decompositions({}).graph.nodes
            names = {str(node.target) for node in nodes if node.op == "call_function" and hasattr(node.target, "_schema")}
            missing = sorted(name for name in names if _TORCH_OPS_REGISTRY.get_func(_plain(name)) is None)
            problems += [f"{source.name}: operator {name} has no Core ML counterpart" for name in missing]
        return problems

    def export(self, sources: Sequence[Source], options: TargetOptions, folder: Path) -> dict[str, Exported]:
        packages = {source.name: folder / f"{source.name}.mlpackage" for source in sources}
        for source in sources:
            _convert(source, options, packages[source.name])
        entries = dict.fromkeys(packages, "")
        if len(sources) > 1 and options.coreml_os >= _FUNCTIONS_FROM:
            merged = folder / "programs.mlpackage"
            _merge(packages, merged)
            packages, entries = dict.fromkeys(packages, merged), {name: name for name in packages}
        for package in set(packages.values()):
            held = [source.contract for source in sources if packages[source.name] == package]
            _embed(package, held)
            _validate(package, held)
        place = Placement(delegate="Core ML", delegate_calls=0, note="decided on the device; not known here")
        described: dict[str, str] = {"precision": options.coreml_precision, "os": options.coreml_os}
        return {name: Exported(package.name, entries[name], described, place) for name, package in packages.items()}

    def value_bytes(self, program: str, options: TargetOptions) -> int:
        return 2 if _half(program, options) else 4

    def stamp(self, file: Path, contracts: Sequence[Contract]) -> None:
        held = {entry["program"] for entry in json.loads(_read(file).description.metadata.userDefined[METADATA_KEY])}
        _embed(file, [contract for contract in contracts if contract.program in held])


def _half(program: str, options: TargetOptions) -> bool:
    """Time features are never in half precision: temporal's sines and cosines of large angles would be wrong."""
    return options.coreml_precision == "fp16" and program != "temporal"


def _plain(name: str) -> str:
    """aten.native_group_norm.default → native_group_norm, as its registry has it."""
    return name.split(".")[1] if "." in name else name


def _convert(source: Source, options: TargetOptions, package: Path) -> None:
    with quiet():
        import coremltools

        try:
            model = coremltools.convert(
                source.exported.run_decompositions({}),
                convert_to="mlprogram",
                outputs=[coremltools.TensorType(name=spec.name, dtype=np.float32) for spec in source.contract.outputs],
                minimum_deployment_target=getattr(coremltools.target, options.coreml_os),
                compute_precision=coremltools.precision.FLOAT16 if _half(source.name, options) else coremltools.precision.FLOAT32,
                skip_model_load=True,
            )
            model.save(str(package))
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


def _validate(package: Path, contracts: Sequence[Contract]) -> None:
    """Read the saved package back: the program must parse with its weights, the interface must be the contract's."""
    with quiet():
        import coremltools
        from coremltools.converters.mil.frontend.milproto.load import load

        model = coremltools.models.MLModel(str(package), skip_model_load=True)
        spec = model.get_spec()
        load(spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
        described = {function.name: function for function in spec.description.functions} or {"": spec.description}
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
