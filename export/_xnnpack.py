"""A quantized model's program in the form that XNNPACK computes in integers: a pure pass over what torch.export made.

XNNPACK has integer convolutions between two grids of 8 bits, and integer linear layers that put each row of their input on a
grid of its own and return floats; little else. So a convolution keeps its grids, a linear layer's input gets its grid when it
is there ("dynamic": never coarser than the calibrated one), and the rest is float: weights whose activations are on no grid,
activations of 16 bits, products of activations. Weights are handed over in the fewest bits that the layer's kernel reads.
"""

import copy
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.ao.quantization.fx import _decomposed  # noqa: F401 (registers the operators)
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputSpec, TensorArgument
from torch.fx import Node

from edge_sd.bundle.bits import LayerBits
from edge_sd.quantize.recipe import Recipe

_OPS = torch.ops.quantized_decomposed
_CONVOLUTION, _LINEAR, _PAD = torch.ops.aten.conv2d.default, torch.ops.aten.linear.default, torch.ops.aten.pad.default
_CHANNELS, _GROUPS = _OPS.dequantize_per_channel.default, _OPS.dequantize_per_channel_group.default
_QUANTIZE, _DEQUANTIZE = _OPS.quantize_per_tensor.default, _OPS.dequantize_per_tensor.default
_EIGHT = (torch.uint8, torch.int8)
# The delegate tells weights of 4 bits from those of 8 by their limits.
_LIMITS = {4: (-8, 7), 8: (-127, 127)}
_GROUP_STEP = 32  # groups of 4-bit weights are multiples of it
_MODEL = "model."  # what `DenoiserProgram` calls the model

STATIC, DYNAMIC, FLOAT = "int8 static", "int8 dynamic", "float32"


@dataclass(frozen=True)
class Handed:
    """What the delegate is given.

    Attributes:
        exported: the program.
        layers: the recipe's name of a layer by the name of its weights' placeholder.
        why: by layer, why it is not what the recipe asks for.
        products: attention's products whose grids were taken off.
    """

    exported: ExportedProgram
    layers: Mapping[str, str]
    why: Mapping[str, str]
    products: tuple[str, ...]


@dataclass(frozen=True)
class _Form:
    """How a layer is computed, and in how many bits and with what group its weights are stored."""

    computed: str
    bits: int = 32
    group: int | None = None
    why: str = ""


def for_xnnpack(exported: ExportedProgram, recipe: Recipe) -> Handed:
    """Make the program that XNNPACK takes; the one given stays as it is."""
    program = _Program(exported)
    layers: dict[str, str] = {}
    why: dict[str, str] = {}
    kept: set[Node] = set()
    for node in [node for node in program.graph.nodes if node.target in (_CONVOLUTION, _LINEAR)]:
        held = _held(node.args[1])
        name = program.targets[held.name].removeprefix(_MODEL).rpartition(".")[0]
        wanted = recipe.layers.get(name)
        if wanted is None:
            continue  # a norm's mean, a wavelet's taps
        form = _Form(FLOAT, why="its weights are float" if wanted.input is not None else "")
        if wanted.bits is not None:
            integers, scales = (program.tensor(f"{_MODEL}{name}.{part}") for part in ("codes", "scales"))
            form = _form(node, wanted.bits, tuple(integers.shape), scales.shape[1], skip=".skip" in name)
            if form.computed == DYNAMIC and node.target is _CONVOLUTION:
                node, integers = program.on_tokens(node), integers.flatten(1)
            node.replace_input_with(node.args[1], program.weights(node, name, integers, scales, form))
        layers[_held(node.args[1]).name] = name
        why[name] = form.why
        if form.computed == STATIC:
            program.grid_last(node)
            kept |= {node.args[0].args[0], *node.users}
        elif form.computed == DYNAMIC:
            program.grid_when_there(node)
    program.keep_grids(kept)
    products = tuple(name for name, layer in recipe.layers.items() if name.endswith(".attend") and layer.input is not None)
    return Handed(program.finished(), layers, why, products)


def _held(weight: Node) -> Node:
    """The placeholder that weights come from."""
    while weight.op != "placeholder":
        weight = weight.args[0]  # type: ignore[assignment]
    return weight


def _form(node: Node, bits: int, shape: Sequence[int], groups: int, *, skip: bool) -> _Form:
    """How XNNPACK computes a layer of integer weights.

    Args:
        skip: what it puts out is added to a block's output and never mended. A grid for each row of its input costs more than a
            decibel of the whole model where its weights have 8 bits, and all other such layers together cost none; beside the
            error of weights of 4 bits it is not seen.
    """
    before, after, convolution = _grid_before(node), _grid_after(node), node.target is _CONVOLUTION
    if before not in (None, *_EIGHT):
        return _Form(FLOAT, why="XNNPACK has no activations of 16 bits")
    reasons = [] if before else ["XNNPACK multiplies integer weights by integers alone: each row of its input is put on a grid"]
    if before is None and skip and bits > 4:
        return _Form(FLOAT, why="XNNPACK multiplies integer weights by integers alone; a skip's input needs more than 8 bits")
    tokens = not convolution or _is_pointwise(node, shape)
    if tokens and bits <= 4:
        group = shape[1] // groups
        if groups == 1 and shape[1] % 2 == 0:
            return _Form(DYNAMIC, 4, None, "; ".join(reasons + _wider(bits, 4)))
        if groups > 1 and group % _GROUP_STEP == 0:
            return _Form(DYNAMIC, 4, group, "; ".join(reasons + _wider(bits, 4)))
        odd = f"{shape[1]} inputs are an odd number"
        reasons.append(odd if groups == 1 else f"a group of {group} is no multiple of {_GROUP_STEP}")
    static = before in _EIGHT and after in _EIGHT
    if not static and not tokens:
        missing = "input" if before is None else "output"
        return _Form(FLOAT, why=f"XNNPACK's integer convolution has an {missing} of 8 bits; it has a float one")
    reasons += _wider(bits, 8, "convolution" if convolution else "linear layer")
    reasons += ["rounded again to a scale a channel"] if groups > 1 else []
    return _Form(STATIC if static else DYNAMIC, 8, None, "; ".join(reasons))


def _wider(bits: int, stored: int, what: str = "linear layer") -> list[str]:
    return [f"XNNPACK has no such {what} of {bits}-bit weights"] if bits != stored else []


def _is_pointwise(node: Node, shape: Sequence[int]) -> bool:
    """Whether a convolution is a linear layer of each cell."""
    stride_and_padding = list(node.args[3:])  # as far as they are not the usual ones
    return tuple(shape[2:]) == (1, 1) and stride_and_padding in ([], [[1, 1]], [[1, 1], [0, 0]])


def _grid_before(node: Node) -> torch.dtype | None:
    """Integers that a layer's input was on."""
    source = node.args[0]
    if source.target is _PAD:  # type: ignore[union-attr]
        source = source.args[0]  # type: ignore[union-attr]
    return source.args[5] if source.target is _DEQUANTIZE else None  # type: ignore[union-attr, return-value]


def _grid_after(node: Node) -> torch.dtype | None:
    """Integers that a layer's output is put on."""
    users = list(node.users)
    return users[0].args[5] if len(users) == 1 and users[0].target is _QUANTIZE else None  # type: ignore[return-value]


def _before_grid(value: Any) -> Node:
    """What was put on a grid; the value itself where it is on none."""
    found: Node = value.args[0].args[0] if value.target is _DEQUANTIZE else value
    return found


def _per_channel(integers: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Integers of 8 bits and scales (O,) of weights that had a scale a group."""
    if scales.shape[1] == 1:
        return integers, scales[:, 0].contiguous()
    real = _restored(integers, scales)
    found = real.flatten(1).abs().amax(1).div(_LIMITS[8][1])
    found = torch.where(found > 0, found, torch.ones_like(found))
    column = found.view(-1, *([1] * (real.ndim - 1)))
    return torch.round(real / column).to(torch.int8), found


def _restored(integers: Tensor, scales: Tensor) -> Tensor:
    grouped = integers.float().unflatten(1, (scales.shape[1], -1))
    real: Tensor = grouped * scales.view(*scales.shape, *([1] * (integers.ndim - 1)))
    return real.flatten(1, 2)


class _Program:
    """A copy of an exported program that nodes and constants can be put into.

    Attributes:
        targets: name of each constant by its placeholder's.
    """

    def __init__(self, exported: ExportedProgram) -> None:
        self._source = exported
        self._module = copy.deepcopy(exported.graph_module)
        self.graph = self._module.graph
        self._specs = list(exported.graph_signature.input_specs)
        self._state = dict(exported.state_dict)
        self.targets = {spec.arg.name: spec.target for spec in self._specs if spec.target is not None}
        self._mode = next(node.meta["val"].fake_mode for node in self.graph.nodes if node.op == "placeholder")

    def tensor(self, target: str) -> Tensor:
        """A constant's value."""
        value: Tensor = self._state[target]
        return value.detach()

    def weights(self, node: Node, name: str, integers: Tensor, scales: Tensor, form: _Form) -> Node:
        """The node that gives a layer its weights in another form."""
        if form.computed == FLOAT:
            return self._constant(f"{_MODEL}{name}.restored", _restored(integers, scales))
        low, high = _LIMITS[form.bits]
        rest: tuple[Any, ...]
        if form.group is None:
            integers, scales = _per_channel(integers, scales)
            zeros = torch.zeros_like(scales, dtype=torch.int64)
            kind, rest = _CHANNELS, (0, low, high, torch.int8)
        else:
            zeros = torch.zeros_like(scales, dtype=torch.int32)
            kind, rest = _GROUPS, (low, high, torch.int8, form.group, torch.float32)
        constants = {"integers": integers, "scale": scales, "zeros": zeros}
        held = [self._constant(f"{_MODEL}{name}.{part}", value) for part, value in constants.items()]
        with self.graph.inserting_before(node):
            return self._call(kind, (*held, *rest))

    def grid_last(self, node: Node) -> None:
        """Put a map on its grid after it is padded, not before: 0 is on every grid, and a kernel wants its grid at hand."""
        pad: Any = node.args[0]
        if pad.target is not _PAD:
            return
        quantize = pad.args[0].args[0]
        with self.graph.inserting_before(node):
            padded = self._call(_PAD, (quantize.args[0], *pad.args[1:]), pad.kwargs)
            grid = self._call(_DEQUANTIZE, (self._call(_QUANTIZE, (padded, *quantize.args[1:])), *quantize.args[1:]))
        node.replace_input_with(pad, grid)

    def on_tokens(self, node: Node) -> Node:
        """Compute a 1×1 convolution as a linear layer of each cell of a map that is kept channels last."""
        source, bias = _before_grid(node.args[0]), node.args[2] if len(node.args) > 2 else None
        B, C, H, W = source.meta["val"].shape
        aten = torch.ops.aten
        with self.graph.inserting_before(node):
            last = self._call(aten.permute.default, (source, [0, 2, 3, 1]))
            tokens = self._call(aten.reshape.default, (last, [B * H * W, C]))
            linear: Node = self.graph.call_function(
                _LINEAR, (tokens, node.args[1], bias)
            )  # its weights are still four-dimensional
            linear.meta["val"] = tokens.meta["val"].new_empty(B * H * W, node.meta["val"].shape[1])
            out = self._call(aten.permute.default, (self._call(aten.view.default, (linear, [B, H, W, -1])), [0, 3, 1, 2]))
        node.replace_all_uses_with(out)
        self.graph.erase_node(node)
        return linear

    def grid_when_there(self, node: Node) -> None:
        """Let each row of a linear layer's input, (…, I), have the grid that fits it."""
        value: Any = node.args[0]
        source = _before_grid(value)
        with self.graph.inserting_before(node):
            chosen = self._call(_OPS.choose_qparams_per_token_asymmetric.default, (source, torch.int8))
            grid = [self._call(operator.getitem, (chosen, index)) for index in range(2)] + [-128, 127, torch.int8]
            quantized = self._call(_OPS.quantize_per_token.default, (source, *grid))
            restored = self._call(_OPS.dequantize_per_token.default, (quantized, *grid, torch.float32))
        node.replace_input_with(value, restored)

    def keep_grids(self, kept: Collection[Node]) -> None:
        """Take off every grid but those at static layers; make these signed, and give each of their readers one of its own.

        Where two read one dequantized tensor and only one wants it channels last, XNNPACK's passes move it for both.
        """
        for node in list(self.graph.nodes):
            if node.target is not _DEQUANTIZE:
                continue
            quantize = node.args[0]
            if quantize not in kept:
                node.replace_all_uses_with(quantize.args[0])
                continue
            readers = list(node.users)
            grid = _signed(quantize.args[1:])
            with self.graph.inserting_after(quantize):
                signed = self._call(_QUANTIZE, (quantize.args[0], *grid))
            for reader in readers:
                with self.graph.inserting_before(node):
                    reader.replace_input_with(node, self._call(_DEQUANTIZE, (signed, *grid)))

    def finished(self) -> ExportedProgram:
        """The program, without what nothing reads any more."""
        self.graph.eliminate_dead_code()
        unread = {spec.arg.name for spec in self._specs if spec.target is not None}
        for node in list(self.graph.nodes):
            if node.op == "placeholder" and node.name in unread:
                if node.users:
                    unread.discard(node.name)
                else:
                    self.graph.erase_node(node)
        specs = [spec for spec in self._specs if spec.arg.name not in unread]
        self.graph.lint()
        self._module.recompile()
        source, signature = self._source, copy.copy(self._source.graph_signature)
        signature.input_specs = specs
        (outputs,) = self.graph.output_node().args
        signature.output_specs = [
            OutputSpec(spec.kind, TensorArgument(node.name), spec.target)
            for spec, node in zip(signature.output_specs, outputs, strict=True)
        ]
        alive = {spec.target for spec in specs}
        return ExportedProgram(
            root=self._module,
            graph=self.graph,
            graph_signature=signature,
            state_dict={target: value for target, value in self._state.items() if target in alive},
            range_constraints=source.range_constraints,
            module_call_graph=source.module_call_graph,
            example_inputs=source.example_inputs,
            constants=source.constants,
            verifiers=source.verifiers,
        )

    def _call(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Node:
        node: Node = self.graph.call_function(target, args, dict(kwargs or {}))
        with self._mode:
            node.meta["val"] = target(*(arg.meta["val"] if isinstance(arg, Node) else arg for arg in args), **node.kwargs)
        return node

    def _constant(self, target: str, value: Tensor) -> Node:
        if target in self._state:  # a layer that is called twice
            known: Node = next(node for node in self.graph.nodes if self.targets.get(node.name) == target)
            return known
        first = next(node for node in self.graph.nodes if node.op == "placeholder")
        with self.graph.inserting_before(first):
            node: Node = self.graph.placeholder("b_" + target.replace(".", "_"))
        node.meta["val"] = self._mode.from_tensor(value, static_shapes=True)
        self._specs.insert(0, InputSpec(InputKind.BUFFER, TensorArgument(node.name), target, True))
        self._state[target], self.targets[node.name] = value.contiguous(), target
        return node


def _signed(grid: Sequence[Any]) -> tuple[Any, ...]:
    """The same grid counted by signed integers, as kernels want it."""
    scale, zero, low, high, dtype = grid
    middle = 2**7 if dtype is torch.uint8 else 0
    return (scale, zero - middle, low - middle, high - middle, torch.int8)


# What came out


def layer_bits(handed: Handed, recipe: Recipe, program: Any) -> tuple[LayerBits, ...]:
    """What became of each layer, as the delegate's own parts of the lowered program have it.

    Args:
        program: the lowered ExportedProgram.
    """
    found: dict[str, tuple[float, str]] = {}
    inside = [
        getattr(program.graph_module, node.target).original_module.graph
        for node in program.graph.nodes
        if node.op == "get_attr" and hasattr(getattr(program.graph_module, node.target, None), "original_module")
    ]
    for graph, delegated in [(program.graph, False), *((graph, True) for graph in inside)]:
        for node in graph.nodes:
            if node.op == "call_function" and _named(node).startswith(("aten.convolution.", "aten.linear.", "aten.addmm.")):
                weight = node.args[2] if _named(node).startswith("aten.addmm.") else node.args[1]
                layer = handed.layers.get(_held(weight).name)
                if layer is not None:
                    found[layer] = _seen(node.args[0], weight, delegated=delegated)
    sizes = {
        layer: int(handed.exported.state_dict[spec.target].numel())
        for spec in handed.exported.graph_signature.input_specs
        for layer in [handed.layers.get(spec.arg.name)]
        if layer is not None and spec.target is not None
    }
    return tuple(
        LayerBits(
            layer=name,
            weights=weights,
            requested=recipe.layers[name].bits,
            requested_activations=recipe.layers[name].input,
            stored=found[name][0],
            computed=found[name][1],
            why=handed.why[name] if found[name][1] != _OUTSIDE else "XNNPACK does not take it",
        )
        for name, weights in sizes.items()
    )


_OUTSIDE = "float32, outside of the delegate"


def _seen(source: Node, weight: Node, *, delegated: bool) -> tuple[float, str]:
    """Bits that a layer's weights are stored in and what it is computed with."""
    integer = "dequantize" in _named(weight)
    limits = tuple(weight.args[4:6]) if "per_channel.default" in _named(weight) else tuple(weight.args[3:5])
    bits = 32 if not integer else 4 if delegated and limits == _LIMITS[4] else 8
    if not delegated:
        return bits, _OUTSIDE
    if not integer:
        return bits, FLOAT
    return bits, DYNAMIC if "per_token" in _named(source) else STATIC


def _named(node: Node) -> str:
    """An operator's name, whichever dialect it is of."""
    return str(getattr(node.target, "__name__", node.target)) if node.op == "call_function" else ""
