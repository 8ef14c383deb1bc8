"""Operators on elements, shapes, indices and reductions, against NumPy or PyTorch in float64."""

import numpy as np
import pytest
import scipy.special
import torch.nn.functional as F
from mil_cases import Case, Cases, Evaluate, f32, integers, mb, normal, t, uniform

CASES = Cases()
case, unary = CASES.case, CASES.unary
X, Y, POSITIVE, UNIT = normal(2, 3, 4), normal(3, 1), uniform(0.1, 3, 2, 3, 4), uniform(-0.9, 0.9, 2, 3, 4)
WHOLE, OTHER = integers(-9, 9, 2, 3), integers(1, 5, 2, 3)

MAP = normal(2, 4, 7, 5)

# Elementwise

for name, binary, second in (
    ("add", np.add, Y), ("sub", np.subtract, Y), ("mul", np.multiply, Y), ("real_div", np.divide, uniform(0.5, 2, 3, 1)),
    ("floor_div", np.floor_divide, uniform(0.5, 2, 3, 1)), ("mod", np.mod, uniform(0.5, 2, 3, 1)),
    ("maximum", np.maximum, Y), ("minimum", np.minimum, Y),
):  # fmt: skip
    case(name, lambda x0, x1, name=name: getattr(mb, name)(x=x0, y=x1), (X, second), binary)
case("pow", lambda x0, x1: mb.pow(x=x0, y=x1), (POSITIVE, X), np.power)
for name, binary in (
    ("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("floor_div", np.floor_divide), ("mod", np.mod),
    ("maximum", np.maximum), ("minimum", np.minimum),
):  # fmt: skip
    case(name, lambda x0, x1, name=name: getattr(mb, name)(x=x0, y=x1), (WHOLE, OTHER), binary)
for name, binary in (
    ("equal", np.equal), ("not_equal", np.not_equal), ("greater", np.greater), ("greater_equal", np.greater_equal),
    ("less", np.less), ("less_equal", np.less_equal),
):  # fmt: skip
    case(name, lambda x0, x1, name=name: mb.cast(x=getattr(mb, name)(x=x0, y=x1), dtype="int32"), (WHOLE, WHOLE[::-1].copy()),
         lambda x, y, binary=binary: binary(x, y))  # fmt: skip
for name, binary in (("logical_and", np.logical_and), ("logical_or", np.logical_or), ("logical_xor", np.logical_xor)):
    case(
        name,
        lambda x0, x1, name=name: mb.cast(
            x=getattr(mb, name)(x=mb.cast(x=x0, dtype="bool"), y=mb.cast(x=x1, dtype="bool")), dtype="int32"
        ),
        (integers(0, 2, 3, 4), integers(0, 2, 3, 4)),
        lambda x, y, binary=binary: binary(x, y),
    )
case(
    "logical_not",
    lambda x0: mb.cast(x=mb.logical_not(x=mb.cast(x=x0, dtype="bool")), dtype="int32"),
    integers(0, 2, 3, 4),
    np.logical_not,
)
for name, x, function in (
    ("abs", X, np.abs), ("acos", UNIT, np.arccos), ("asin", UNIT, np.arcsin), ("atan", X, np.arctan), ("atanh", UNIT, np.arctanh),
    ("ceil", X, np.ceil), ("cos", X, np.cos), ("cosh", X, np.cosh), ("erf", X, scipy.special.erf), ("exp", X, np.exp),
    ("exp2", X, np.exp2), ("floor", X, np.floor), ("identity", X, np.copy), ("sign", X, np.sign), ("sin", X, np.sin),
    ("sinh", X, np.sinh), ("sqrt", POSITIVE, np.sqrt), ("square", X, np.square), ("tan", UNIT, np.tan), ("tanh", X, np.tanh),
    ("round", np.array([-1.5, -0.5, 0.5, 1.5, 2.5, 2.51], f32), np.round), ("abs", WHOLE, np.abs), ("sign", WHOLE, np.sign),
):  # fmt: skip
    unary(name, x, function)
unary("inverse", POSITIVE, lambda x: 1 / (x + 0.25), epsilon=f32(0.25))
unary("log", POSITIVE, lambda x: np.log(x + 0.25), epsilon=f32(0.25))
unary("rsqrt", POSITIVE, lambda x: 1 / np.sqrt(x + 0.25), epsilon=f32(0.25))
unary("clip", X, lambda x: np.clip(x, -0.3, 0.7), alpha=f32(-0.3), beta=f32(0.7))
unary("threshold", X, lambda x: np.maximum(x, 0.25), alpha=f32(0.25))
case(
    "select",
    lambda x0, x1, x2: mb.select(cond=mb.cast(x=x0, dtype="bool"), a=x1, b=x2),
    (integers(0, 2, 2, 3, 4), X, UNIT),
    lambda c, a, b: np.where(c != 0, a, b),
)
case("cast", lambda x0: mb.cast(x=x0, dtype="int32"), 4 * X, np.trunc)
case("cast", lambda x0: mb.cast(x=x0, dtype="fp32"), WHOLE, np.float64)
case("cast", lambda x0: mb.cast(x=mb.cast(x=x0, dtype="bool"), dtype="fp32"), X.round(), lambda x: x != 0)
case("cast", lambda x0: mb.cast(x=mb.cast(x=x0, dtype="uint8"), dtype="int32"), OTHER, np.copy)

# Activations

WIDE = 4 * X
for name, torch_name in (
    ("relu", "relu"),
    ("relu6", "relu6"),
    ("sigmoid", "sigmoid"),
    ("silu", "silu"),
    ("softsign", "softsign"),
):
    unary(name, WIDE, lambda x, f=torch_name: getattr(F, f)(t(x)))
unary("softplus", 10 * X, lambda x: np.logaddexp(x, 0))
unary("gelu", WIDE, lambda x: F.gelu(t(x)), mode="EXACT")
unary("gelu", WIDE, lambda x: F.gelu(t(x), approximate="tanh"), mode="TANH_APPROXIMATION")
unary("gelu", WIDE, lambda x: x * scipy.special.expit(1.702 * x), mode="SIGMOID_APPROXIMATION")
unary("softmax", WIDE, lambda x: scipy.special.softmax(x, 1), axis=1)
unary("softmax", WIDE, lambda x: scipy.special.softmax(x, -1))
unary("elu", WIDE, lambda x: F.elu(t(x), 0.5), alpha=f32(0.5))
unary("leaky_relu", WIDE, lambda x: np.where(x > 0, x, 0.2 * x), alpha=f32(0.2))
SLOPES = uniform(0.1, 0.9, 4)
unary("prelu", MAP, lambda x: F.prelu(t(x), t(SLOPES)), alpha=SLOPES)
unary("clamped_relu", WIDE, lambda x: np.minimum(1.5, np.where(x > 0, x, 0.2 * x)), alpha=f32(0.2), beta=f32(1.5))
unary("thresholded_relu", X, lambda x: np.where(x >= 0.5, x, 0), alpha=f32(0.5))
unary("linear_activation", X, lambda x: 2 * x - 0.5, alpha=f32(2), beta=f32(-0.5))
unary("scaled_tanh", X, lambda x: 2 * np.tanh(0.5 * x), alpha=f32(2), beta=f32(0.5))
unary("sigmoid_hard", WIDE, lambda x: np.clip(0.25 * x + 0.5, 0, 1), alpha=f32(0.25), beta=f32(0.5))
unary("softplus_parametric", MAP, lambda x: SLOPES[:, None, None] * np.logaddexp(2 * SLOPES[:, None, None] * x, 0),
      alpha=SLOPES, beta=2 * SLOPES)  # fmt: skip

# Shapes

unary("reshape", X, lambda x: x.reshape(2, 6, 2), shape=[0, -1, 2])
unary("reshape", X, lambda x: x.reshape(4, 6), "iOS16", shape=[4, 6])
case(
    "reshape_like",
    lambda x0, x1, x2: mb.reshape_like(x=x0, ref_tensors=(x1, x2), begins=(0, 1), ends=(1, 0), end_masks=(False, True)),
    (X, normal(2, 9), normal(7, 3, 4)),
    lambda x, *_: x,
)
unary("transpose", X, lambda x: x.transpose(2, 0, 1), perm=[2, 0, 1])
unary("expand_dims", X, lambda x: x[:, None, :, :, None], axes=[1, -1])
unary("squeeze", X[:, None, :, None], np.squeeze, axes=[1, 3])
unary("squeeze", X[:1, None], np.squeeze)
unary("flatten2d", X, lambda x: x.reshape(6, 4), axis=2)
unary("flatten2d", X, lambda x: x.reshape(6, 4), axis=-1)
unary("shape", X, lambda x: np.array(x.shape))
case("concat", lambda x0, x1: mb.concat(values=(x0, x1), axis=1), (X, normal(2, 5, 4)), lambda *v: np.concatenate(v, 1))
case(
    "concat",
    lambda x0, x1: mb.concat(values=(x0, x1), axis=-2, interleave=True),
    (X, UNIT),
    lambda x, y: np.stack([x, y], 2).reshape(2, 6, 4),
)
case("stack", lambda x0, x1: mb.stack(values=(x0, x1), axis=-1), (X, UNIT), lambda *v: np.stack(v, -1))
case("split", lambda x0: mb.split(x=x0, num_splits=2, axis=2)[1], X, lambda x: x[:, :, 2:])
case("split", lambda x0: mb.split(x=x0, split_sizes=[1, 2], axis=1)[1], X, lambda x: x[:, 1:])
unary("tile", X, lambda x: np.tile(x, (1, 3, 2)), reps=[1, 3, 2])
unary("reverse", X, lambda x: x[::-1, :, ::-1], axes=[0, -1])
unary("reverse", X, np.flip)
unary("pad", X, lambda x: np.pad(x, ((0, 0), (1, 2), (0, 3)), constant_values=0.5), pad=[1, 2, 0, 3], constant_val=f32(0.5))
unary("pad", X, lambda x: np.pad(x, ((0, 0), (1, 2), (3, 1)), "reflect"), pad=[0, 0, 1, 2, 3, 1], mode="reflect")
unary("pad", X, lambda x: np.pad(x, ((0, 0), (1, 3), (2, 0)), "edge"), pad=[1, 3, 2, 0], mode="replicate")
unary("slice_by_index", X, lambda x: x[1:, 2::-1, 1:3], begin=[1, 2, 1], end=[0, 0, -1], stride=[1, -1, 1],
      end_mask=[True, True, False], begin_mask=[False, False, False])  # fmt: skip
unary("slice_by_index", X, lambda x: x[1, ::2, -3:], begin=[1, 9, -3], end=[9, 9, 4], stride=[1, 2, 1],
      begin_mask=[False, True, False], end_mask=[False, True, False], squeeze_mask=[True, False, False])  # fmt: skip
unary("slice_by_size", X, lambda x: x[:, 1:3, 2:], begin=[0, 1, 2], size=[2, 2, -1])


def updated(x: np.ndarray, update: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[:, 1:, ::2] = update
    return x


case(
    "slice_update",
    lambda x0, x1: mb.slice_update(
        x=x0, update=x1, begin=[0, 1, 0], end=[2, 3, 0], stride=[1, 1, 2], end_mask=[False, False, True]
    ),
    (X, normal(2, 2, 2)),
    updated,
    "iOS18",
)
DEEP = normal(2, 8, 2, 3)
unary("pixel_shuffle", DEEP, lambda x: F.pixel_shuffle(t(x), 2), upscale_factor=2)
unary("pixel_unshuffle", normal(2, 3, 4, 6), lambda x: F.pixel_unshuffle(t(x), 2), downscale_factor=np.uint32(2))
unary("space_to_depth", normal(2, 2, 4, 6), lambda x: np.concatenate([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1),
      block_size=2)  # fmt: skip


def to_space(x: np.ndarray) -> np.ndarray:
    out = np.empty((2, 2, 4, 6))
    for place in range(4):
        out[:, :, place // 2 :: 2, place % 2 :: 2] = x[:, 2 * place : 2 * place + 2]
    return out


unary("depth_to_space", DEEP, to_space, block_size=2)

# By index

unary("gather", X, lambda x: np.take(x, [[2, 0], [-1, 1]], 1), indices=np.array([[2, 0], [-1, 1]], np.int32), axis=1)
unary("gather", X, lambda x: np.take(x, 1, 0), indices=np.int32(1), axis=0)
PLACES = integers(-3, 3, 2, 5)
unary("gather", X, lambda x: np.stack([x[b][PLACES[b]] for b in range(2)]), indices=PLACES, axis=1, batch_dims=1)
ALONG = integers(-4, 4, 2, 3, 2)
unary("gather_along_axis", X, lambda x: np.take_along_axis(x, ALONG.astype(int), 2), indices=ALONG, axis=2)
POINTS = np.array([[0, 2], [1, 0], [1, 1]], np.int32)
unary("gather_nd", X, lambda x: x[POINTS[:, 0], POINTS[:, 1]], indices=POINTS)
unary("gather_nd", X, lambda x: np.stack([x[0, [2, 1]], x[1, [0, 2]]]), indices=np.array([[[2], [1]], [[0], [2]]], np.int32),
      batch_dims=1)  # fmt: skip
case(
    "one_hot",
    lambda x0: mb.one_hot(indices=x0, one_hot_vector_size=5, axis=1, on_value=f32(2), off_value=f32(-1)),
    integers(0, 5, 2, 3),
    lambda x: np.moveaxis(np.where(np.eye(5)[x.astype(int)] == 1, 2.0, -1.0), -1, 1),
)
case("fill", lambda x0: mb.add(x=x0, y=mb.fill(shape=[2, 3, 4], value=f32(1.5))), X, lambda x: x + 1.5)
case("fill_like", lambda x0: mb.fill_like(ref_tensor=x0, value=f32(1.5)), X, lambda x: np.full_like(x, 1.5))
case(
    "range_1d",
    lambda x0: mb.add(x=x0, y=mb.range_1d(start=1.0, end=3.0, step=0.5)),
    X,
    lambda x: x + np.arange(1, 3, 0.5),
)
unary("cumsum", X, lambda x: np.cumsum(x, 1), axis=1)
unary("cumsum", X, lambda x: np.flip(np.cumsum(np.flip(x, 2), 2), 2) - x, axis=2, exclusive=True, reverse=True)
unary("band_part", X, lambda x: np.triu(np.tril(x, 2), -1), lower=1, upper=2)
unary("band_part", X, lambda x: np.tril(x, 0), lower=-1, upper=0)
unary("argsort", X, lambda x: np.argsort(x, 1), axis=1, ascending=True)
unary("argsort", X, lambda x: np.argsort(-x, -1))
case("topk", lambda x0: mb.topk(x=x0, k=2, axis=1)[0], X, lambda x: -np.sort(-x, 1)[:, :2])
case("topk", lambda x0: mb.topk(x=x0, k=2, axis=2, ascending=True)[1], X, lambda x: np.argsort(x, 2)[:, :, :2])

# Reductions

for name, function in (
    ("reduce_l1_norm", lambda x, **k: np.abs(x).sum(**k)), ("reduce_l2_norm", lambda x, **k: np.sqrt((x * x).sum(**k))),
    ("reduce_log_sum", lambda x, **k: np.log(x.sum(**k))), ("reduce_log_sum_exp", lambda x, **k: np.log(np.exp(x).sum(**k))),
    ("reduce_max", np.max), ("reduce_mean", np.mean), ("reduce_min", np.min), ("reduce_prod", np.prod), ("reduce_sum", np.sum),
    ("reduce_sum_square", lambda x, **k: (x * x).sum(**k)),
):  # fmt: skip
    unary(name, POSITIVE, lambda x, f=function: f(x, axis=(0, 2)), axes=[0, -1])
    unary(name, POSITIVE, lambda x, f=function: f(x, axis=1, keepdims=True), axes=[1], keep_dims=True)
    unary(name, POSITIVE, lambda x, f=function: f(x, axis=None, keepdims=True), keep_dims=True)
unary("reduce_argmax", X, lambda x: np.argmax(x, 1), axis=1)
unary("reduce_argmin", X, lambda x: np.argmin(x, 2)[:, :, None], axis=-1, keep_dims=True)


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.operator)
def test_operator(one: Case, evaluate: Evaluate) -> None:
    one.check(evaluate)


def test_every_operator_has_a_case() -> None:
    CASES.assert_complete("elementwise", "activation", "shape", "index", "reduce")
