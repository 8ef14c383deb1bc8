"""The ONNX target: one file a program, by torch.onnx's exporter, run in ONNX Runtime."""

import collections
import json
import os
import tempfile
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

OLDEST_OPSET, NEWEST_OPSET = 18, 23
_PROFILED_CALLS, _SHOWN_OPERATORS = 4, 8


class OnnxTarget(Target):
    """Batch 1 and fixed shapes, so that the runtime can plan its memory; the contract is in the model's metadata too."""

    name = "onnx"
    about = "ONNX, float32; runs in ONNX Runtime"
    rewrites = (
        "folded-attention",
        "matmul-attention",
        "depthwise-wavelet-down",
        "butterfly-wavelet-up",
        "folded-haar-up",
        "instance-group-norm",
    )
    quantized_rewrites = ("folded-haar-up", "instance-group-norm")

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

            registry, decomposed = ONNXRegistry.from_torchlib(opset_version=options.onnx_opset), default_decompositions()
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
        found = {}
        for source in sources:
            file = f"{source.name}.onnx"
            _convert(source, options.onnx_opset, folder / file)
            found[source.name] = Exported(file, "", {"opset": str(options.onnx_opset)}, _place(folder / file, source))
        return found

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


def _convert(source: Source, opset: int, file: Path) -> None:
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
    exported.save(file, external_data=_needs_external_data(source))


def _needs_external_data(source: Source) -> bool:
    """A protobuf file ends at 2 GiB."""
    size: int = sum(value.numel() * value.element_size() for value in source.exported.state_dict.values())
    return size > 2**31 - 2**24


def _place(file: Path, source: Source) -> Placement:
    """Run a few calls under ONNX Runtime's profiler and see who did what."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.enable_profiling = 3, True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
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
