"""What is done to a quantized ONNX graph before it is written, each step exact: nothing of it changes a number that is computed.

torch.onnx writes our operators as QuantizeLinear and DequantizeLinear. Here weights of up to 4 bits get 4-bit storage, layers
that compute in float get weights that the runtime unpacks once and not in every call, and linear layers get the integer bias that
the runtime's integer kernels want.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edge_sd.quantize.recipe import Recipe

# The oldest opset with 4-bit and 16-bit integers.
NARROW_OPSET = 21
_SUFFIX, _PREFIX = ".codes", "model."


def least_opset(recipe: Recipe) -> int:
    """The oldest opset that holds a recipe's numbers."""
    layers = recipe.layers.values()
    narrow = any(layer.bits is not None and layer.bits <= 4 for layer in layers)
    wide = any(16 in (layer.input, layer.output) for layer in layers)
    return NARROW_OPSET if narrow or wide else 0


def finish(model: Any, recipe: Recipe) -> None:
    """Put the graph of a quantized denoiser into the form that is stored, in place.

    Args:
        model: an onnx.ModelProto with its initializers inside.
    """
    graph = _Graph(model)
    for name, node in weights_of(model).items():
        layer = recipe.layers[name]
        if layer.input is None:
            graph.unpack_once(node)
        elif layer.bits is not None and layer.bits <= 4:
            graph.widen(node)
        if layer.bits is not None and layer.bits <= 4:
            graph.narrow(node.input[0])
    graph.integer_biases()
    graph.replace()


def weights_of(model: Any) -> dict[str, Any]:
    """The node that restores each layer's weights, by the layer's name."""
    found = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0].endswith(_SUFFIX):
            found[layer_of(node.input[0])] = node
    return found


def layer_of(initializer: str) -> str:
    """model.down.0.block.conv1.codes → down.0.block.conv1."""
    return initializer.removeprefix(_PREFIX).removesuffix(_SUFFIX)


class _Graph:
    """A graph while it is edited: what was there, and what each node turns into."""

    def __init__(self, model: Any) -> None:
        self.graph = model.graph
        self.values = {tensor.name: tensor for tensor in self.graph.initializer}
        self.producer = {output: node for node in self.graph.node for output in node.output}
        self.before: dict[str, list[Any]] = {}  # nodes to put before the one with this output
        self.instead: dict[str, list[Any]] = {}  # nodes in place of the one with this output

    def array(self, name: str) -> Any:
        from onnx import numpy_helper

        return numpy_helper.to_array(self.values[name])

    def add(self, name: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        if name not in self.values:
            self.values[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
            self.graph.initializer.append(self.values[name])
        return name

    def unpack_once(self, node: Any) -> None:
        """Cast and multiply in place of DequantizeLinear: a runtime folds them when it loads, and that one never.

        Not behind an activation on a grid: ONNX Runtime would take the float weights there for unquantized, and round them anew.
        """
        from onnx import TensorProto, helper

        codes, scale = node.input[0], self.array(node.input[1])
        if scale.ndim > 1 or not scale.ndim:
            return  # groups: left as they are
        shape = self.values[codes].dims
        column = self.add(f"{node.output[0]}.scale", scale.reshape(-1, *([1] * (len(shape) - 1))))
        real = f"{node.output[0]}.cast"
        self.instead[node.output[0]] = [
            helper.make_node("Cast", [codes], [real], to=TensorProto.FLOAT),
            helper.make_node("Mul", [real, column], [node.output[0]]),
        ]

    def widen(self, node: Any) -> None:
        """A cast to 8 bits before DequantizeLinear: integer kernels compute with 8, the file holds 4."""
        from onnx import TensorProto, helper

        wide = f"{node.input[0]}.int8"
        cast = helper.make_node("Cast", [node.input[0]], [wide], to=TensorProto.INT8)
        renamed = helper.make_node(node.op_type, [wide, *node.input[1:]], list(node.output), name=node.name)
        renamed.attribute.extend(node.attribute)
        self.instead[node.output[0]] = [cast, renamed]

    def narrow(self, name: str) -> None:
        """Store integers −8 … 7 two to a byte."""
        from onnx import TensorProto

        tensor, codes = self.values[name], self.array(name)
        flat = codes.reshape(-1).astype(np.uint8) & 0xF
        flat = np.append(flat, np.zeros(len(flat) % 2, np.uint8))
        tensor.ClearField("int32_data")
        tensor.data_type, tensor.raw_data = TensorProto.INT4, (flat[::2] | (flat[1::2] << 4)).tobytes()

    def integer_biases(self) -> None:
        """A linear layer's bias as integers of the product's own scale: without, a layer with float output stays in float."""
        from onnx import helper

        for node in list(self.graph.node):
            if node.op_type != "Gemm" or len(node.input) < 3 or node.input[2] not in self.values:
                continue
            sides = [self.producer.get(name) for name in node.input[:2]]
            if any(side is None or side.op_type != "DequantizeLinear" for side in sides):
                continue
            if sides[1].output[0] in self.instead and self.instead[sides[1].output[0]][-1].op_type != "DequantizeLinear":  # type: ignore[union-attr]
                continue
            scale = (self.array(sides[0].input[1]) * self.array(sides[1].input[1])).astype(np.float32)  # type: ignore[union-attr]
            exact = np.round(self.array(node.input[2]).astype(np.float64) / scale)
            limit = 2**31 - 1
            name = f"{node.output[0]}.bias"
            inputs = [
                self.add(f"{name}.int32", np.clip(exact, -limit, limit).astype(np.int32)),
                self.add(f"{name}.scale", scale),
                self.add(f"{name}.zero", np.zeros(len(scale), np.int32)),
            ]
            self.before.setdefault(node.output[0], []).append(helper.make_node("DequantizeLinear", inputs, [name], axis=0))
            node.input[2] = name

    def replace(self) -> None:
        """Write the nodes back, and drop values that nobody reads any more."""
        nodes: list[Any] = []
        for node in self.graph.node:
            nodes += self.before.get(node.output[0], [])
            nodes += self.instead.get(node.output[0], [node])
        kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(kept)
        read = {name for node in kept for name in node.input}
        made = {name for node in kept for name in node.output}
        described = [type(value).FromString(value.SerializeToString()) for value in self.graph.value_info if value.name in made]
        del self.graph.value_info[:]  # of an initializer they would say what it was before
        self.graph.value_info.extend(described)
        used = [tensor for tensor in self.graph.initializer if tensor.name in read]
        kept_values = [type(tensor).FromString(tensor.SerializeToString()) for tensor in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept_values)


def stored_bits(model: Any) -> dict[str, float]:
    """Bits that a weight takes, by layer, as the file's own types say."""
    from onnx import TensorProto

    widths = {TensorProto.INT4: 4.0, TensorProto.INT8: 8.0, TensorProto.UINT8: 8.0, TensorProto.FLOAT: 32.0}
    return {
        layer_of(tensor.name): widths[tensor.data_type] for tensor in model.graph.initializer if tensor.name.endswith(_SUFFIX)
    }


# Kernels of ONNX Runtime that multiply integers.
INTEGER_KERNELS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "ConvInteger", "MatMulInteger")


def integer_layers(optimized: Any) -> set[str]:
    """Layers that an optimized graph computes with integers: those whose integers go into an integer kernel."""
    readers: dict[str, list[Any]] = {}
    for node in optimized.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = set()
    for tensor in optimized.graph.initializer:
        if _SUFFIX in tensor.name and any(node.op_type in INTEGER_KERNELS for node in _reached(tensor.name, readers)):
            found.add(layer_of(_original(tensor.name)))
    return found


def _original(name: str) -> str:
    """model.conv_in.codes.int8 or …codes_token_12, as a runtime calls what it folded or copied → model.conv_in.codes."""
    return name[: name.index(_SUFFIX) + len(_SUFFIX)]


def _reached(name: str, readers: Mapping[str, Sequence[Any]]) -> Iterator[Any]:
    """Nodes that read a value, also through casts and changes of layout."""
    for node in readers.get(name, ()):
        yield node
        if node.op_type in ("Cast", "Transpose", "Reshape"):
            yield from _reached(node.output[0], readers)
