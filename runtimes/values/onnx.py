"""Inside of an ONNX program: the saved graph with every value as an output, unoptimized, in ONNX Runtime."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Bundle
from edge_sd.runtimes.values import Values


class OnnxValues(Values):
    """The file's own nodes and weights; ONNX Runtime's fusions are left out, for they would hide what is between."""

    name = "onnx"
    about = "the saved graph, in ONNX Runtime without fusions"

    def of(self, bundle: Bundle, program: str, inputs: Sequence[NDArray[np.float32]]) -> Iterator[tuple[str, NDArray[Any]]]:
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnx
        import onnxruntime
        from onnx import helper

        model = onnx.load(bundle.path / bundle.program(self.name, program).file)
        known = {value.name for value in model.graph.output}
        names = [name for node in model.graph.node for name in node.output if name]
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feeds = {spec.name: value for spec, value in zip(bundle.manifest.contract(program).inputs, inputs, strict=True)}
        outputs = [value.name for value in session.get_outputs()]
        yield from zip(outputs, session.run(outputs, feeds), strict=True)
