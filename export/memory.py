"""A program's memory, forecast from its graph: weights, and the activations that are alive at once."""

import math
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from edge_sd.bundle.placement import MemoryForecast

# Results that share their input's memory in every runtime that is exported to.
_VIEWS = {"view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "alias", "detach", "flatten", "unflatten", "expand"}


def forecast(program: ExportedProgram, value_bytes: int = 4) -> MemoryForecast:
    """Walk the graph in its own order and free each tensor after its last use (liveness).

    Args:
        value_bytes: what a float32 of the graph takes in the target.

    What a runtime adds is not in it: a layout change's second copy, a convolution's packed weights, its own arena's slack.
    """
    specs = program.graph_signature.input_specs
    constants = {spec.arg.name for spec in specs if spec.kind is not InputKind.USER_INPUT}
    owner: dict[Node, Node] = {}
    last_use: dict[Node, int] = {}
    nodes = list(program.graph.nodes)
    # What nothing uses (the time layers, in a denoiser) is among the program's tensors, and in no exported file.
    weights = sum(_size(node) for node in nodes if node.name in constants and node.users)
    for index, node in enumerate(nodes):
        source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        shares = node.op == "call_function" and source is not None and _name(node) in _VIEWS
        owner[node] = owner[source] if shares and source is not None else node
        for used in node.all_input_nodes:
            last_use[owner[used]] = index
    alive = peak = 0
    ending: dict[int, list[Node]] = {}
    for node, index in last_use.items():
        ending.setdefault(index, []).append(node)
    for index, node in enumerate(nodes):
        if owner[node] is node and node.name not in constants and node.op != "output":
            alive += _size(node) if node in last_use else 0
            peak = max(peak, alive)
        for done in ending.get(index, ()):
            if done.name not in constants:
                alive -= _size(done)
    return MemoryForecast(weights_bytes=weights * value_bytes // 4, activations_bytes=peak * value_bytes // 4)


def _name(node: Node) -> str:
    return str(node.target).split(".")[1] if "." in str(node.target) else str(node.target)


def _size(node: Node) -> int:
    value: Any = node.meta.get("val")
    if isinstance(value, Tensor):
        return math.prod(value.shape) * value.element_size()
    return 0  # a tuple: its items count where they are taken out
