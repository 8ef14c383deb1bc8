"""The ONNX target: one file a program, by torch.onnx's exporter, run in ONNX Runtime."""

import collections
import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_sd.bundle.bits import LayerBits
from edge_sd.bundle.contract import METADATA_KEY, Contract
from edge_sd.bundle.manifest import LAYOUT, NCHW
from edge_sd.bundle.placement import Placement
from edge_sd.errors import EdgeSDError
from edge_sd.export._qdq import finish, integer_layers, least_opset, stored_bits
from edge_sd.export._shared import save_shared, slice_weights
from edge_sd.export._target import Exported, Source, Target, TargetOptions
from edge_sd.files import write_bytes
from edge_sd.quantize.recipe import Recipe
from edge_sd.quiet import quiet
from edge_sd.runnable import Availability, packages_available

OLDEST_OPSET, NEWEST_OPSET = 18, 23
_PROFILED_CALLS, _SHOWN_OPERATORS = 4, 8
# Up to which size it pays to leave maps of integers as they are (measured).
_SMALL_MAP = 32


class OnnxTarget(Target):
    """Batch 1 and fixed shapes, so that the runtime can plan its memory; the contract is in the model's metadata too."""

    name = "onnx"
    about = "ONNX, float32 or quantized; runs in ONNX Runtime"
    rewrites = (
        "folded-attention",
        "matmul-attention",
        "depthwise-wavelet-down",
        "butterfly-wavelet-up",
        "folded-haar-up",
        "instance-group-norm",
    )
    quantized_rewrites = ("joined-wavelet-up-nhwc", "folded-haar-up", "instance-group-norm")

    def available(self) -> Availability:
        return packages_available("onnx", "onnxscript", "onnxruntime")

    def check(self, sources: Sequence[Source], options: TargetOptions) -> list[str]:
        if not OLDEST_OPSET <= options.onnx_opset <= NEWEST_OPSET:
            return [
                f"opset {options.onnx_opset} is {'too old' if options.onnx_opset < OLDEST_OPSET else 'too new'}: "
                f"{OLDEST_OPSET} to {NEWEST_OPSET} can be written (18 is the newest whose quantized graphs load)"
            ]
        with quiet():
            from torch.export import default_decompositions
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            registry, decomposed = (
                ONNXRegistry.from_torchlib(opset_version=max(_opset(source, options) for source in sources)),
                default_decompositions(),
            )
        problems = []
        for source in sources:
            targets = {node.target for node in source.exported.graph.nodes if node.op == "call_function"}
            names = {
                str(target) for target in targets if hasattr(target, "overloads") or hasattr(target, "_schema")
                if not registry.is_registered(target) and target not in decomposed and not _is_composite(target)
            }  # fmt: skip
            problems += [f"{source.name}: operator {name} has no ONNX counterpart" for name in sorted(names)]
        return problems

    def export(self, sources: Sequence[Source], options: TargetOptions, folder: Path) -> dict[str, Exported]:
        files = {source.name: f"{source.name}.onnx" for source in sources}
        opsets = {source.name: _opset(source, options) for source in sources}
        shared = {}
        denoisers = [source for source in sources if source.name.partition(".")[0] == "denoiser"]
        several, slim = len(denoisers) > 1, len(denoisers) > 1 and denoisers[0].recipe is None
        for source in sources:
            file = folder / files[source.name]
            program = _convert(source, opsets[source.name])
            if source.recipe is None and (not slim or source not in denoisers or _needs_external_data(source)):
                program.save(file, external_data=_needs_external_data(source))
                continue
            model = program.model_proto if source.recipe is None else _quantized(program, source.recipe)
            if several or _needs_external_data(source):
                shared[file] = model
            else:
                write_bytes(file, model.SerializeToString())
        if shared:
            if slim:
                slice_weights(shared)
            save_shared(shared, folder)
        return {
            source.name: Exported(
                files[source.name],
                "",
                {"opset": str(opsets[source.name]), **_layout(source)},
                _place(folder / files[source.name], source),
                _layers(folder / files[source.name], source.recipe),
            )
            for source in sources
        }

    def stamp(self, file: Path, contracts: Sequence[Contract]) -> None:
        import onnx

        model = onnx.load(file, load_external_data=False)
        for entry in model.metadata_props:
            if entry.key == METADATA_KEY:
                program = json.loads(entry.value)["program"]
                entry.value = next(contract for contract in contracts if contract.program == program).model_dump_json()
        write_bytes(file, model.SerializeToString())


def _is_composite(target: Any) -> bool:
    """Whether PyTorch itself writes an operator in others, so that the exporter never meets it."""
    import torch

    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd"))


def _opset(source: Source, options: TargetOptions) -> int:
    """The opset asked for, or the oldest that holds the program's numbers."""
    return max(options.onnx_opset, least_opset(source.recipe) if source.recipe is not None else 0)


def _layout(source: Source) -> dict[str, str]:
    """Of a quantized program on small maps: integer convolutions stay as they are, for there turning maps over takes longer."""
    small = source.contract.inputs[0].shape[-1] <= _SMALL_MAP
    return {LAYOUT: NCHW} if source.recipe is not None and small else {}


def _convert(source: Source, opset: int) -> Any:
    """The program in onnxscript's form."""
    import torch

    contract = source.contract
    try:
        with quiet():
            exported = torch.onnx.export(
                source.exported,
                source.example,
                dynamo=True,
                opset_version=opset,
                input_names=[spec.name for spec in contract.inputs],
                output_names=[spec.name for spec in contract.outputs],
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise EdgeSDError(
            f"the ONNX export of the {source.name} failed: {error}", "edge-sd doctor shows the versions that were tested together"
        ) from error
    if exported is None:
        raise EdgeSDError(f"the ONNX export of the {source.name} returned nothing", "edge-sd doctor shows the tested versions")
    for node in exported.model.graph.all_nodes():  # folders and source lines of this machine
        node.metadata_props.clear()
    exported.model.metadata_props[METADATA_KEY] = contract.model_dump_json()
    return exported


def _quantized(program: Any, recipe: Recipe) -> Any:
    model = program.model_proto
    finish(model, recipe)
    return model


def _layers(file: Path, recipe: Recipe | None) -> tuple[LayerBits, ...]:
    """What became of each layer, as the file and the runtime's own optimized graph say."""
    if recipe is None:
        return ()
    import onnx

    model = onnx.load(file, load_external_data=False)
    stored, shapes = stored_bits(model), {tensor.name: tensor.dims for tensor in model.graph.initializer}
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        session_of(file, optimized)
        integer = integer_layers(onnx.load(optimized, load_external_data=False))
    found = []
    for name, layer in recipe.layers.items():
        numbers = math.prod(shapes.get(f"model.{name}.codes") or shapes.get(f"model.{name}.weight") or (0,))
        if not numbers:
            continue  # attention's products have no weights
        computed = "int8" if name in integer else "float32"
        why = layer.why
        if layer.input is not None and computed == "float32":
            why = f"ONNX Runtime's CPU kernels have no {layer.input}-bit activations" if layer.input > 8 else "not fused"
        if layer.bits is not None and layer.bits < stored[name]:
            why = f"no {layer.bits}-bit type: stored in {stored[name]:g}"
        found.append(
            LayerBits(
                layer=name,
                weights=numbers,
                requested=layer.bits,
                requested_activations=layer.input,
                stored=stored.get(name, 32.0),
                computed=computed,
                why=why,
            )
        )
    return tuple(found)


def _needs_external_data(source: Source) -> bool:
    """A protobuf file ends at 2 GiB."""
    size: int = sum(value.numel() * value.element_size() for value in source.exported.state_dict.values())
    return size > 2**31 - 2**24


def session_of(file: Path, optimized: Path | None = None, profile: Path | None = None) -> Any:
    """A session on the CPU, for a look at what ONNX Runtime makes of a file.

    Args:
        optimized: where its optimized graph is written.
        profile: what the names of its profiles begin with.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _place(file: Path, source: Source) -> Placement:
    """Run a few calls under ONNX Runtime's profiler and see who did what."""
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(file, profile=Path(folder) / "profile")
        feeds: dict[str, np.ndarray] = {
            spec.name: value.numpy() for spec, value in zip(source.contract.inputs, source.example, strict=True)
        }
        for _ in range(_PROFILED_CALLS):
            session.run(None, feeds)
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("kernel_time")]
    spent: collections.Counter[str] = collections.Counter()
    outside: collections.Counter[str] = collections.Counter()
    for event in kernels:
        spent[event["args"]["op_name"]] += event["dur"]
        if event["args"]["provider"] != "CPUExecutionProvider":
            outside[event["args"]["op_name"]] += 1
    total = max(sum(spent.values()), 1)
    return Placement(
        delegate="CPUExecutionProvider",
        delegate_calls=1,
        outside={name: count // _PROFILED_CALLS for name, count in outside.items()},
        outside_share=sum(spent[name] for name in outside) / total,
        operators={name: round(value / total, 4) for name, value in spent.most_common(_SHOWN_OPERATORS)},
    )
