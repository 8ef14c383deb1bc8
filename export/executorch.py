"""The ExecuTorch target: one .pte whose methods are the programs, lowered to XNNPACK, Core ML or Vulkan."""

import collections
import contextlib
import gc
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_sd.bundle.bits import LayerBits
from edge_sd.bundle.contract import Contract
from edge_sd.bundle.placement import Placement
from edge_sd.errors import EdgeSDError
from edge_sd.export._target import Exported, Source, Target, TargetOptions
from edge_sd.export._xnnpack import for_xnnpack, layer_bits
from edge_sd.files import write_bytes
from edge_sd.quiet import quiet
from edge_sd.runnable import Availability, packages_available

FILE = "programs.pte"
_PROFILED_CALLS = 3
_RUNS_HERE = "xnnpack"


class ExecuTorchTarget(Target):
    """Everything in one delegate where it can be: each hand-over costs time, and a second pass through every lowering step."""

    name = "executorch"
    about = "ExecuTorch .pte, float32 or quantized; XNNPACK, or the Core ML and Vulkan delegates (float32, not run here)"
    rewrites = (
        "folded-attention-nhwc",
        "matmul-attention",
        "depthwise-wavelet-down",
        "butterfly-wavelet-up-nhwc",
        "folded-haar-up-nhwc",
        "concat-pixel-up",
        "pooled-group-norm",
        "matmul-layer-norm",
    )
    quantized_rewrites = (
        "joined-wavelet-up-nhwc",
        "folded-haar-up-nhwc",
        "concat-pixel-up",
        "pooled-group-norm",
        "matmul-layer-norm",
    )

    def available(self) -> Availability:
        return packages_available("executorch")

    def check(self, sources: Sequence[Source], options: TargetOptions) -> list[str]:
        problems = []
        if options.executorch_delegate != _RUNS_HERE and any(source.recipe is not None for source in sources):
            other = " (--target coreml takes one)" if options.executorch_delegate == "coreml" else ""
            problems.append(
                f"the {options.executorch_delegate} delegate is given no quantized model here{other}; {_RUNS_HERE} is"
            )
        for source in sources:
            known = {"aten"} if source.recipe is None else {"aten", "quantized_decomposed"}
            foreign = sorted(
                {
                    str(node.target)
                    for node in source.exported.graph.nodes
                    if node.op == "call_function" and hasattr(node.target, "namespace") and node.target.namespace not in known
                }
            )
            problems += [
                f"{source.name}: operator {name} is not an ATen operator; ExecuTorch has no kernel for it" for name in foreign
            ]
        return problems

    def export(self, sources: Sequence[Source], options: TargetOptions, folder: Path) -> dict[str, Exported]:
        handed = {source.name: for_xnnpack(source.exported, source.recipe) for source in sources if source.recipe is not None}
        given = [
            replace(source, exported=handed[source.name].exported) if source.name in handed else source for source in sources
        ]
        lowered, program = _lower(given, options.executorch_delegate)
        write_bytes(folder / FILE, program.buffer)
        shares = _outside_shares(folder / FILE, given) if options.executorch_delegate == _RUNS_HERE else {}
        found = {}
        for source in sources:
            placement = _place(lowered, source.name, options.executorch_delegate, shares.get(source.name))
            layers: tuple[LayerBits, ...] = ()
            if source.recipe is not None:
                layers = layer_bits(handed[source.name], source.recipe, lowered.exported_program(source.name))
                products = handed[source.name].products
                if products:
                    note = f"attention's products are computed in float, XNNPACK has no integer ones: {', '.join(products)}"
                    placement = placement.model_copy(update={"note": note})
            found[source.name] = Exported(FILE, source.name, {"delegate": options.executorch_delegate}, placement, layers)
        return found

    def stamp(self, file: Path, contracts: Sequence[Contract]) -> None:
        """A .pte has no metadata: its contract is the manifest's, which holds the file's hash."""


def lowered_program(source: Source, delegate: str) -> bytes:
    """A .pte of one program, as `export` makes it; whatever its outputs are.

    Raises:
        EdgeSDError: ExecuTorch cannot lower it.
    """
    if source.recipe is not None:
        source = replace(source, exported=for_xnnpack(source.exported, source.recipe).exported)
    buffer: bytes = _lower([source], delegate)[1].buffer
    return buffer


def _partitioner(delegate: str) -> Any:
    if delegate == "coreml":
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner

        return CoreMLPartitioner()
    if delegate == "vulkan":
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

        return VulkanPartitioner()
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return XnnpackPartitioner()


def _lower(sources: Sequence[Source], delegate: str) -> tuple[Any, Any]:
    """The edge program and what is made of it for the device."""
    with quiet():
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

        try:
            with _fast_passes():
                # Parity checks what comes out; the dialect's own checks after every pass take a fifth of the time.
                lowered = to_edge_transform_and_lower(
                    {source.name: source.exported for source in sources},
                    partitioner={source.name: [_partitioner(delegate)] for source in sources},
                    compile_config=EdgeCompileConfig(_check_ir_validity=False),
                )
            return lowered, lowered.to_executorch()
        except Exception as error:  # its passes raise whatever they like
            raise EdgeSDError(
                f"ExecuTorch cannot lower to {delegate}: {str(error).strip().splitlines()[0] if str(error).strip() else error!r}",
                "edge-sd export --dry-run names operators that are not supported",
            ) from error


@contextlib.contextmanager
def _fast_passes() -> Iterator[None]:
    """Take a third off the some 25 passes over the graph that a lowering is.

    Every pass notes where a node came from and copies all earlier notes, which nothing ever changes: they are shared instead.
    And the millions of small objects that make a graph are not searched for garbage over and over.
    """
    from torch.fx.traceback import NodeSource

    collecting = gc.isenabled()
    NodeSource.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    gc.disable()
    try:
        yield
    finally:
        del NodeSource.__deepcopy__  # type: ignore[attr-defined]
        if collecting:
            gc.enable()


def _place(lowered: Any, method: str, delegate: str, share: float | None) -> Placement:
    names = [
        getattr(node.target, "__name__", str(node.target))
        for node in lowered.exported_program(method).graph.nodes
        if node.op == "call_function"
    ]
    calls = names.count("executorch_call_delegate")
    ignored = {"executorch_call_delegate", "getitem", "alloc", "free"}
    outside = collections.Counter(name.removeprefix("aten.") for name in names if name not in ignored)
    note = "" if delegate == _RUNS_HERE else "lowered here, not run here"
    return Placement(delegate=delegate, delegate_calls=calls, outside=dict(outside), outside_share=share, note=note)


def _outside_shares(file: Path, sources: Sequence[Source]) -> dict[str, float]:
    """Share of each method's time that is spent outside of delegates, from ExecuTorch's own event trace."""
    shares = {}
    with quiet(), tempfile.TemporaryDirectory() as folder:
        from executorch.devtools import Inspector
        from executorch.extension.pybindings.portable_lib import _load_for_executorch

        for source in sources:
            try:
                module = _load_for_executorch(str(file), enable_etdump=True)
                for _ in range(_PROFILED_CALLS):
                    module.run_method(source.name, source.example)
            except RuntimeError as error:
                raise EdgeSDError(
                    f"ExecuTorch lowered the {source.name} and cannot run it: {str(error).splitlines()[0]}",
                    "another --delegate, or another --target",
                ) from error
            trace = Path(folder) / f"{source.name}.etdump"
            module.write_etdump_result_to_file(str(trace), "")
            spent: collections.Counter[str] = collections.Counter()
            for block in Inspector(etdump_path=str(trace)).event_blocks:
                for event in block.events:
                    if event.perf_data is not None:
                        spent[event.name] += sum(event.perf_data.raw)
            whole = spent["Method::execute"]
            shares[source.name] = min(max(spent["OPERATOR_CALL"] / whole, 0.0), 1.0) if whole else 0.0
    return shares
