"""A quantized program on its way to Core ML: the form that its front end translates losslessly, and what came of each layer.

Core ML has no 16-bit activations. It stores weights as integers of 4 or 8 bits with a scale a channel or, from iOS 18 on, a block
of channels. What a package holds is compared with the roundings that were asked for, by their values: names do not outlive its
optimizer, and layers of equal weights share a constant.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from edge_sd.bundle.bits import LayerBits
from edge_sd.errors import EdgeSDError
from edge_sd.export._target import Source
from edge_sd.quantize.grid import restored_weight
from edge_sd.quantize.recipe import LayerRecipe, Recipe, described

NARROW = 4  # bits of the smallest integers that weights are stored in
NARROW_FROM, ACTIVATIONS_FROM = "iOS18", "iOS17"
OPERATOR = "edge_sd::restored"
_PREFIX, _CODES, _SCALES = "model.", ".codes", ".scales"
_WIDE = (torch.uint16, torch.int16)
_OPS = torch.ops.quantized_decomposed
# Core ML Tools lets no scale become 0, and takes two for one where they differ by no more.
_LEAST_HALF = float(np.finfo(np.float16).smallest_subnormal)


@torch.library.custom_op(OPERATOR, mutates_args=())
def restored(codes: Tensor, scales: Tensor, low: int, high: int) -> Tensor:
    """Weights of codes (O, I, …) and scales (O, groups), written as one operator so that it is translated as one."""
    return restored_weight(codes, scales)


@dataclass(frozen=True)
class Held:
    """Weights in a package: integers int8 (O, I, …), scales (O, groups), and the bits that an integer takes."""

    codes: np.ndarray
    scales: np.ndarray
    bits: int


def refusals(recipe: Recipe, system: str) -> list[str]:
    """What a recipe asks for that packages for a system have no room for."""
    weighted = [layer for layer in recipe.layers.values() if layer.bits is not None]
    found = []
    if system < NARROW_FROM:
        narrow = min((layer.bits for layer in weighted if layer.bits is not None), default=8)
        if narrow <= NARROW:
            found.append(f"{narrow}-bit weights need --coreml-os {NARROW_FROM}")
        if any(layer.group is not None for layer in weighted):
            found.append(f"weights whose scales are of groups need --coreml-os {NARROW_FROM}")
    if system < ACTIVATIONS_FROM and any(8 in (layer.input, layer.output) for layer in recipe.layers.values()):
        found.append(f"8-bit activations need --coreml-os {ACTIVATIONS_FROM}")
    return found


def translatable(program: ExportedProgram) -> None:
    """Put a decomposed program, in place, into the form that is translated: weights `restored`, 16-bit activations in float."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in (_OPS.dequantize_per_channel.default, _OPS.dequantize_per_channel_group.default):
            _restore(graph, node)
        elif node.target is torch.ops.aten.alias.default or _is_wide(node):
            node.replace_all_uses_with(node.args[0])
    graph.eliminate_dead_code()


def _is_wide(node: Node) -> bool:
    points = (_OPS.quantize_per_tensor.default, _OPS.dequantize_per_tensor.default)
    return node.target in points and node.args[5] in _WIDE


def _restore(graph: Graph, node: Node) -> None:
    """Whatever was done to the integers' and the scales' shapes on the way is undone: they are taken as the layer holds them."""
    codes, scales = (_origin(node.args[index]) for index in (0, 1))
    low, high = node.args[4:6] if node.target is _OPS.dequantize_per_channel.default else node.args[3:5]
    with graph.inserting_before(node):
        name = f"{codes.name.removesuffix('_codes')}_weight"  # what a reader of the package finds
        new = graph.create_node("call_function", torch.ops.edge_sd.restored.default, (codes, scales, low, high), name=name)
    new.meta["val"] = codes.meta["val"].float()
    for user in list(node.users):
        if user.target is torch.ops.aten.view.default and user.meta["val"].shape == codes.meta["val"].shape:
            user.replace_all_uses_with(new)
    node.replace_all_uses_with(new)


def _origin(value: object) -> Node:
    """The constant that a node's value is a view of."""
    while isinstance(value, Node) and value.op == "call_function":
        value = value.args[0]
    assert isinstance(value, Node)  # noqa: S101 (views have one input)
    return value


def layer_bits(source: Source, held: Iterable[Held], *, half: bool) -> tuple[tuple[LayerBits, ...], float]:
    """What became of each layer, and by how much of itself a scale is off at most.

    Args:
        held: all weights that the saved program holds as integers.
        half: whether it computes in float16, and so has scales in it.

    Raises:
        EdgeSDError: a layer's integers are not in the program, or with other scales.
    """
    if source.recipe is None:
        return (), 0.0
    by_codes: dict[str, list[Held]] = {}
    for one in held:
        by_codes.setdefault(_digest(one.codes), []).append(one)
    tensors = source.exported.state_dict
    found, off = [], 0.0
    for name, layer in described(source.recipe.model).items():
        recipe = source.recipe.layers[name]
        if layer.kind == "products":
            continue
        stored = 16 if half else 32
        if recipe.bits is not None:
            codes, scales = (tensors[_PREFIX + name + suffix].numpy() for suffix in (_CODES, _SCALES))
            weights = _matching(by_codes.get(_digest(codes), ()), scales)
            if weights is None:
                raise EdgeSDError(
                    f"Core ML Tools changed the weights of {name} in the {source.name}",
                    "edge-sd doctor shows the versions that were tested together",
                )
            stored = weights.bits
            off = max(off, float(np.max(np.abs(weights.scales.astype(np.float64) / scales - 1))))
        found.append(_described(name, layer.weights, recipe, stored, "float16" if half else "float32"))
    return tuple(found), off


def _digest(codes: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(codes, dtype=np.int8).tobytes() + repr(codes.shape).encode()).hexdigest()


def _matching(candidates: Sequence[Held], scales: np.ndarray) -> Held | None:
    for held in candidates:
        rounded = scales.astype(held.scales.dtype)
        slack = _LEAST_HALF if held.scales.dtype == np.float16 else 0.0
        if rounded.shape == held.scales.shape and np.all(np.abs(held.scales - rounded) <= slack):
            return held
    return None


def _described(name: str, weights: int, recipe: LayerRecipe, stored: int, real: str) -> LayerBits:
    reasons = []
    if recipe.bits is not None and stored > recipe.bits:
        reasons.append(f"Core ML stores integers in {NARROW} or 8 bits")
    if 16 in (recipe.input, recipe.output):
        reasons.append(f"Core ML has no 16-bit activations: they are in {real}")
    elif recipe.input is not None and recipe.bits is None:
        reasons.append("its weights are in float")
    in_integers = recipe.bits is not None and recipe.input == 8
    return LayerBits(
        layer=name,
        weights=weights,
        requested=recipe.bits,
        requested_activations=recipe.input,
        stored=stored,
        computed="device" if in_integers else real,
        why="; ".join(reasons),
    )


def by_rows(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Scales of any rank as (O, groups): (O,), (O, groups, 1, …) or one for all."""
    rows = np.broadcast_to(scales, (len(codes),)) if scales.ndim == 0 else scales
    return rows.reshape(len(rows), math.prod(rows.shape[1:]))
