"""The memory forecast: equal to what can be counted by hand, and near what a run takes."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode

from edge_sd.export import DenoiserProgram, targets
from edge_sd.export.memory import forecast
from edge_sd.models.rewrites import rewritten
from edge_sd.models.unet import SpectralUNet

N = 24  # values of the tensors below
BYTES = 4 * N


class Computes(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def export(module: nn.Module, *inputs: Tensor) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module.eval(), inputs)


def views_alive(x: Tensor) -> Tensor:
    """`a` has no use of its own after the first line, but its memory has."""
    a = x * 2
    seen = a.view(4, 6).unsqueeze(0).flatten(0, 1)
    b = seen + 1
    c = b.relu() * 3
    return c + seen


def passed_by(x: Tensor) -> Tensor:
    """The long skip of a U-Net: x waits for the end, beside the two of every step."""
    h = x
    for _ in range(4):
        h = (h * 2).relu()
    return h + x


# name → (function, tensors of N values that are alive together at the worst moment)
BY_HAND: dict[str, tuple[Callable[[Tensor], Any], float]] = {
    "one step": (lambda x: x * 2, 2),
    "chain": (lambda x: ((x * 2) + 1).relu().sigmoid(), 2),
    "residual": (lambda x: x + (x * 2).relu(), 3),
    "long skip": (passed_by, 3),
    "view": (lambda x: (x * 2).view(6, 4) + 1, 2),
    "a view keeps its source": (views_alive, 3),
    "view of the input": (lambda x: x.reshape(6, 4) * 2, 2),
    "transposed is copied": (lambda x: x.view(4, 6).transpose(0, 1) + 1, 2),
    "two outputs": (lambda x: (x * 2, (x + 1).view(6, 4)), 3),
    "an output that waits": (lambda x: (x * 2, ((x + 1).relu() * 3).relu()), 3),
    "doubled and halved": (lambda x: torch.cat([x, x])[:N] + 1, 3),
    "concatenation": (lambda x: torch.cat([x * 2, x + 1, x - 1]), 6),  # three and their copies; x has gone
    "slices": (lambda x: x[: N // 2] + x[N // 2 :], 2),
    "half as wide": (lambda x: x.half() + 1, 1.5),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_activations_by_hand(name: str) -> None:
    function, tensors = BY_HAND[name]
    found = forecast(export(Computes(function), torch.ones(N)))
    assert (found.weights_bytes, found.activations_bytes) == (0, tensors * BYTES)
    assert found.total_bytes == found.activations_bytes


class Weights(nn.Module):
    """Every kind of constant, each of its own size."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 3)
        self.unused = nn.Linear(10, 1000)
        self.register_buffer("kept", torch.ones(7))
        self.register_buffer("constant", torch.ones(11), persistent=False)
        self.register_buffer("narrow", torch.ones(13, dtype=torch.float16))
        self.register_buffer("table", torch.arange(10))
        self.bare = torch.ones(17)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x[:, self.table])
        return y.sum() + self.kept.sum() + self.constant.sum() + self.narrow.float().sum() + self.bare.sum()


def test_weights_are_counted_exactly_and_only_where_they_are_used() -> None:
    found = forecast(export(Weights(), torch.ones(1, 10)))
    assert found.weights_bytes == 4 * (10 * 3 + 3) + 4 * 7 + 4 * 11 + 2 * 13 + 8 * 10 + 4 * 17


def test_weights_are_no_activations() -> None:
    """In, hidden, out: two of them at a time, however large the matrices."""
    found = forecast(export(nn.Sequential(nn.Linear(10, 1000), nn.Linear(1000, 20)), torch.ones(1, 10)))
    assert found.weights_bytes == 4 * (10 * 1000 + 1000 + 1000 * 20 + 20)
    assert found.activations_bytes == 4 * (1000 + 20)


def test_an_input_that_nothing_reads_takes_nothing() -> None:
    found = forecast(export(Computes(lambda x, unread: x * 2), torch.ones(N), torch.ones(1000)))
    assert found.activations_bytes == 2 * BYTES


def test_narrower_values() -> None:
    wide, narrow = (forecast(export(nn.Linear(10, 30), torch.ones(1, 10)), value_bytes) for value_bytes in (4, 2))
    assert (narrow.weights_bytes, narrow.activations_bytes) == (wide.weights_bytes // 2, wide.activations_bytes // 2)


# Any graph

Step = tuple[str, int, int]
STEPS = st.lists(st.tuples(st.sampled_from(["double", "add", "both", "half", "view"]), st.integers(0, 99), st.integers(0, 99)),
                 min_size=1, max_size=12)  # fmt: skip


def run(steps: list[Step], x: Tensor) -> tuple[Tensor, ...]:
    """Each step reads one or two earlier results; the last and some other one come out."""
    values = [x]
    for kind, first, second in steps:
        a, b = values[first % len(values)], values[second % len(values)]
        if kind == "double":
            values.append(a * 2)
        elif kind == "add":
            values.append(a.sum() + b)
        elif kind == "both":
            values.append(torch.cat([a.reshape(-1), b.reshape(-1)])[: 2 * N])
        elif kind == "half":
            values.append(a.reshape(-1)[: max(a.numel() // 2, 1)])
        else:
            values.append(a.reshape(1, -1))
    return values[-1], values[len(values) // 2] * 1


@given(STEPS)
@settings(max_examples=25)
def test_the_peak_of_any_graph(steps: list[Step]) -> None:
    """By the definition: at each moment, everything made until then and needed from then on."""
    program = export(Computes(lambda x: run(steps, x)), torch.ones(N))
    nodes = list(program.graph.nodes)

    def storage(node: Any) -> Any:
        while node.op == "call_function" and str(node.target).split(".")[1] in ("reshape", "view", "alias"):
            node = node.args[0]
        return node

    needed = {node: max((nodes.index(user) for seen in nodes if storage(seen) is node for user in seen.users), default=-1)
              for node in nodes if storage(node) is node and node.op != "output"}  # fmt: skip
    sizes = {node: node.meta["val"].numel() * 4 for node in needed if needed[node] >= 0}
    moments = range(len(nodes))
    expected = max(sum(size for node, size in sizes.items() if nodes.index(node) <= now <= needed[node]) for now in moments)
    found = forecast(program).activations_bytes
    assert found == expected
    assert max(sizes.values()) <= found <= sum(sizes.values())


# A real run


class Allocations(TorchDispatchMode):
    """The most bytes of tensors that are alive at once while it is active, seen from each tensor's own birth and death."""

    def __init__(self, constants: Iterable[Tensor], *inputs: Tensor) -> None:
        super().__init__()
        self.known = {value.untyped_storage().data_ptr() for value in constants}
        self.alive = self.peak = 0
        for value in inputs:
            self._note(value)

    def _note(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key in self.known or not size:
            return
        self.known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operator(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(out):
            if isinstance(value, Tensor):
                self._note(value)
        return out


@pytest.mark.parametrize("changes", [{"gating": False}, {"multipliers": (1,), "attention": (1,), "gating": False}])
def test_the_forecast_is_near_what_a_run_allocates(changes: dict[str, Any], make_model: Callable[..., SpectralUNet]) -> None:
    """Above it, for a runtime copies what torch merely views from another side; by no more than those copies."""
    model = make_model(image_size=16, **changes)
    inputs = (torch.randn(1, *model.config.sample_shape), torch.randn(1, model.feature_width))
    program = export(rewritten(DenoiserProgram(model), targets()["onnx"].rewrites), *inputs)
    run = program.module()
    with torch.no_grad():
        run(*inputs)
        with Allocations(run.state_dict().values(), *inputs) as seen:
            run(*inputs)
    assert seen.peak > 16 * 16 * 8 * 4
    assert 0.9 * seen.peak <= forecast(program).activations_bytes <= 2 * seen.peak
