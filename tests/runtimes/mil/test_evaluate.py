"""The rules of an evaluation: what is rounded, what can be asked for on the way, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mil_cases import Evaluate, f32, integers, mb, normal

from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.runtimes.mil import LABEL, load_evaluator

MakePackage = Callable[..., Path]
f16 = np.float16


def half(*shape: int) -> np.ndarray:
    return normal(*shape).astype(f16)


# Half precision


def test_each_operator_in_half_precision_is_rounded_once(evaluate: Evaluate) -> None:
    """Sums in float32, the result in float16: to the bit what torch makes of the same in two steps."""
    x, weight, bias = half(2, 8, 9, 9), half(4, 8, 3, 3), half(4)
    _, outputs = evaluate(
        lambda x0: mb.softmax(x=mb.conv(x=x0, weight=weight, bias=bias, pad_type="valid"), axis=1), [x], "iOS17"
    )
    (found,) = outputs.values()
    convolved = F.conv2d(*(torch.from_numpy(value).float() for value in (x, weight, bias))).half()
    assert found.dtype == f16
    np.testing.assert_array_equal(found, torch.softmax(convolved.float(), 1).half().numpy())


def test_it_is_not_rounded_in_between(evaluate: Evaluate) -> None:
    """2048 + 1 is no half: a mean that added up in float16 would miss the ones."""
    x = np.concatenate([np.full((1, 1), 2048, f16), np.ones((1, 255), f16)], 1)
    _, outputs = evaluate(lambda x0: mb.reduce_mean(x=x0, axes=[1]), [x])
    assert outputs.popitem()[1] == f16((2048 + 255) / 256)


def test_what_is_too_large_for_a_half_is_infinite(evaluate: Evaluate) -> None:
    _, outputs = evaluate(lambda x0: mb.square(x=x0), [np.array([300, -1, 0.001], f16)])
    np.testing.assert_array_equal(outputs.popitem()[1], f16([np.inf, 1, 0.001**2]))


def test_single_precision_is_not_rounded_to_half(evaluate: Evaluate) -> None:
    x = normal(3, 4)
    _, outputs = evaluate(lambda x0: mb.add(x=mb.cast(x=mb.cast(x=x0, dtype="fp16"), dtype="fp32"), y=x0), [x])
    np.testing.assert_array_equal(outputs.popitem()[1], x.astype(f16).astype(f32) + x)


def test_integers_come_round_in_their_type(evaluate: Evaluate) -> None:
    x = np.array([2**31 - 1, -(2**31), 5], np.int32)
    _, outputs = evaluate(lambda x0: mb.add(x=x0, y=np.int32(1)), [x])
    np.testing.assert_array_equal(outputs.popitem()[1], np.array([-(2**31), -(2**31) + 1, 6], np.int32))


def test_numbers_that_are_not_finite_are_numbers(evaluate: Evaluate) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1.0], f32)
    _, outputs = evaluate(lambda x0: mb.relu(x=mb.sub(x=x0, y=f32(1))), [x])
    np.testing.assert_array_equal(outputs.popitem()[1], np.array([np.nan, np.inf, 0, 0], f32))
    _, outputs = evaluate(lambda x0: mb.cast(x=mb.quantize(input=x0, scale=f32(1), output_dtype="int8"), dtype="int32"), [x])
    np.testing.assert_array_equal(outputs.popitem()[1], [0, 127, -128, 1])


# What can be seen on the way


def stack(x0: Any) -> Any:
    first = mb.mul(x=x0, y=f32(2), name="doubled")
    second = mb.cast(x=mb.add(x=first, y=f32(1), name="moved"), dtype="fp16", name="halved")
    return mb.cast(x=mb.tanh(x=second, name="bent"), dtype="fp32", name="out")


def test_every_value_is_observed_in_order(evaluate: Evaluate) -> None:
    x = normal(2, 3)
    evaluator, outputs = evaluate(stack, [x])
    seen: list[tuple[str, str]] = []
    values: dict[str, np.ndarray] = {}

    def observe(operator: str, name: str, value: np.ndarray) -> None:
        seen.append((operator, name))
        values[name] = value

    again = evaluator({"x0": x}, observe)
    assert seen == [("mul", "doubled"), ("add", "moved"), ("cast", "halved"), ("tanh", "bent"), ("cast", "out")]
    assert {name: operator for operator, name in seen}.items() <= evaluator.operators.items()
    assert values["halved"].dtype == f16
    np.testing.assert_array_equal(values["moved"], 2 * x + 1)
    np.testing.assert_array_equal(values["out"], outputs["out"])
    np.testing.assert_array_equal(again["out"], outputs["out"])


def test_few_values_are_observed_by_name(evaluate: Evaluate) -> None:
    evaluator, _ = evaluate(stack, [normal(2, 3)])
    seen: list[str] = []
    evaluator({"x0": normal(2, 3)}, lambda operator, name, value: seen.append(name), wanted={"moved", "bent"})
    assert seen == ["moved", "bent"]
    with pytest.raises(UsageError, match="makes no bend, twisted"):
        evaluator({"x0": normal(2, 3)}, lambda *_: None, wanted={"twisted", "bend", "bent"})


def test_a_value_by_name_stops_where_it_is_made(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(2, 3)
    evaluator, _ = evaluate(stack, [x])
    called: list[str] = []
    kernels = {
        name: lambda a, name=name, kernel=kernel: called.append(name) or kernel(a) for name, kernel in evaluator._kernels.items()
    }
    monkeypatch.setattr(evaluator, "_kernels", kernels)
    found = evaluator.values({"x0": x}, ["moved", "x0"])
    assert called == ["mul", "add"]
    np.testing.assert_array_equal(found["moved"], 2 * x + 1)
    np.testing.assert_array_equal(found["x0"], x)
    with pytest.raises(UsageError, match="makes no twisted"):
        evaluator.values({"x0": x}, ["twisted"])


def test_an_observer_may_keep_and_change_what_it_sees(evaluate: Evaluate) -> None:
    x = normal(2, 3)
    evaluator, outputs = evaluate(lambda x0: mb.add(x=mb.reshape(x=mb.identity(x=x0), shape=[3, 2]), y=f32(1)), [x])

    def spoil(operator: str, name: str, value: np.ndarray) -> None:
        value[...] = 99

    (again,) = evaluator({"x0": x}, spoil).values()
    np.testing.assert_array_equal(again, *outputs.values())


def test_several_outputs_and_one_that_is_needed_twice(evaluate: Evaluate) -> None:
    x = normal(2, 4)

    def body(x0: Any) -> Any:
        left, right = mb.split(x=x0, num_splits=2, axis=1)
        return mb.add(x=left, y=right, name="sum"), mb.sub(x=left, y=right, name="difference"), left

    _, outputs = evaluate(body, [x])
    total, difference, left = outputs.values()
    assert list(outputs)[:2] == ["sum", "difference"]
    np.testing.assert_array_equal(total, x[:, :2] + x[:, 2:])
    np.testing.assert_array_equal(difference, x[:, :2] - x[:, 2:])
    np.testing.assert_array_equal(left, x[:, :2])


def test_what_depends_on_no_input_is_computed_once(evaluate: Evaluate) -> None:
    x = normal(3, 4)

    def body(x0: Any) -> Any:
        sizes = mb.shape(x=x0)
        rows = mb.slice_by_index(x=sizes, begin=[0], end=[1])
        return mb.reshape(x=x0, shape=mb.concat(values=(np.array([2, 2], np.int32), rows), axis=0))

    evaluator, outputs = evaluate(body, [x])
    np.testing.assert_array_equal(outputs.popitem()[1], x.reshape(2, 2, 3))
    seen: list[str] = []
    evaluator({"x0": x}, lambda operator, name, value: seen.append(operator))
    assert seen == ["reshape"]


def test_inputs_stay_as_they_were(evaluate: Evaluate) -> None:
    x = normal(2, 2, 4)
    kept = x.copy()
    evaluate(lambda x0: mb.slice_update(x=x0, update=np.zeros((2, 2, 1), f32), begin=[0, 0, 0], end=[2, 2, 1]), [x], "iOS18")
    np.testing.assert_array_equal(x, kept)


# What is refused


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ({}, "takes the inputs x0"),
        ({"x": normal(2, 3)}, "takes the inputs x0, not x"),
        ({"x0": normal(2, 3), "x1": normal(2, 3)}, "not x0, x1"),
        ({"x0": normal(3, 2)}, r"float32\[2, 3\], not float32\[3, 2\]"),
        ({"x0": half(2, 3)}, "not float16"),
        ({"x0": normal(2, 3).astype(np.float64)}, "not float64"),
        ({"x0": 1.0}, r"not float64\[\]"),
    ],
)
def test_a_wrong_input_is_refused(inputs: dict[str, Any], match: str, evaluate: Evaluate) -> None:
    evaluator, _ = evaluate(stack, [normal(2, 3)])
    with pytest.raises(UsageError, match=match):
        evaluator(inputs)


def test_every_unknown_operator_is_named_before_anything_runs(make_package: MakePackage) -> None:
    def body(x0: Any) -> Any:
        places = mb.non_zero(x=x0, name="places")
        noise = mb.random_normal(shape=[2, 3], name="noise")
        return mb.add(x=mb.reduce_sum(x=mb.cast(x=places, dtype="fp32"), axes=[0, 1], keep_dims=True), y=noise)

    with pytest.raises(EdgeSDError, match=r"spec version 8.*non_zero \(places\), random_normal \(noise\)"):
        load_evaluator(make_package(body, [normal(2, 3)]))


def test_control_flow_and_states_are_refused(make_package: MakePackage) -> None:
    def branches(x0: Any) -> Any:
        return mb.cond(
            pred=mb.greater(x=mb.reduce_sum(x=x0), y=f32(0)),
            _true_fn=lambda: mb.relu(x=x0),
            _false_fn=lambda: mb.tanh(x=x0),
            name="branch",
        )

    with pytest.raises(EdgeSDError, match=r"cond \(branch\)"):
        load_evaluator(make_package(branches, [normal(2, 3)]))


def test_a_shape_that_depends_on_numbers_is_refused(make_package: MakePackage) -> None:
    def body(x0: Any) -> Any:
        return mb.reduce_sum(x=mb.reshape(x=normal(6), shape=x0, name="reshaped"), axes=[0, 1], keep_dims=False)

    with pytest.raises(EdgeSDError, match=r"flexible|no constant"):
        load_evaluator(make_package(body, [integers(1, 4, 2)]))


def test_the_function_must_be_there(make_package: MakePackage) -> None:
    path = make_package(stack, [normal(2, 3)])
    assert load_evaluator(path, "main").function.name == "main"
    with pytest.raises(EdgeSDError, match="no function denoiser, only main"):
        load_evaluator(path, "denoiser")


def test_an_index_outside_is_found_when_it_is_met(evaluate: Evaluate) -> None:
    evaluator, _ = evaluate(lambda x0, x1: mb.gather(x=x0, indices=x1, axis=0), [normal(4, 2), integers(0, 4, 3)])
    with pytest.raises(EdgeSDError, match=r"gather .* cannot be evaluated") as caught:
        evaluator({"x0": normal(4, 2), "x1": np.array([0, 9, 1], np.int32)})
    assert caught.value.hint


def test_results_are_never_called_core_mls() -> None:
    assert LABEL == "Core ML reference evaluation"
