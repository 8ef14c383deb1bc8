"""Convolutions, products, norms, pooling, resampling and integer activations, against PyTorch in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mil_cases import Case, Cases, Evaluate, f32, integers, mb, normal, t, uniform

CASES = Cases()
case, unary = CASES.case, CASES.unary
X, MAP, VOLUME = normal(2, 3, 4), normal(2, 4, 7, 5), normal(1, 2, 5, 4, 3)
SLOPES = uniform(0.1, 0.9, 4)

# Networks

WEIGHT, BIAS = normal(6, 2, 3, 3), normal(6)
unary("conv", MAP, lambda x: F.conv2d(t(x), t(WEIGHT), t(BIAS), (2, 1), 1, (1, 2), 2), weight=WEIGHT, bias=BIAS,
      strides=[2, 1], pad_type="custom", pad=[1, 1, 1, 1], dilations=[1, 2], groups=2)  # fmt: skip
unary("conv", MAP, lambda x: F.conv2d(F.pad(t(x), (0, 3, 2, 1)), t(WEIGHT), groups=2), weight=WEIGHT, pad_type="custom",
      pad=[2, 1, 0, 3], groups=2)  # fmt: skip
unary("conv", MAP[..., :4], lambda x: F.conv2d(F.pad(t(x), (0, 1, 1, 1)), t(WEIGHT), stride=2, groups=2), weight=WEIGHT,
      pad_type="same", strides=[2, 2], groups=2)  # fmt: skip
unary("conv", MAP[..., :4], lambda x: F.conv2d(F.pad(t(x), (1, 0, 1, 1)), t(WEIGHT), stride=2, groups=2), weight=WEIGHT,
      pad_type="same_lower", strides=[2, 2], groups=2)  # fmt: skip
LINE, CUBE = normal(3, 4, 5), normal(3, 2, 2, 2, 2)
unary("conv", normal(1, 4, 9), lambda x: F.conv1d(t(x), t(LINE), stride=2), weight=LINE, pad_type="valid", strides=[2])
unary("conv", VOLUME, lambda x: F.conv3d(t(x), t(CUBE), padding=(1, 0, 1)), weight=CUBE, pad_type="custom",
      pad=[1, 1, 0, 0, 1, 1])  # fmt: skip
BACK = normal(4, 3, 3, 3)
unary("conv_transpose", MAP, lambda x: F.conv_transpose2d(t(x), t(BACK), t(BIAS[:3]), stride=2), weight=BACK, bias=BIAS[:3],
      strides=[2, 2])  # fmt: skip
unary("conv_transpose", MAP, lambda x: F.conv_transpose2d(t(x), t(BACK), t(BIAS), 2, 1, 1, 2), weight=BACK, bias=BIAS,
      strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1], groups=2, output_shape=[2, 6, 14, 10])  # fmt: skip
unary("conv_transpose", MAP, lambda x: F.conv_transpose2d(t(x), t(BACK), None, 2)[..., :14, :10], weight=BACK, strides=[2, 2],
      pad_type="same")  # fmt: skip
unary("conv_transpose", MAP, lambda x: F.conv_transpose2d(t(x), t(BACK), dilation=2)[..., 1:-2, :], weight=BACK,
      pad_type="custom", pad=[1, 2, 0, 0], dilations=[2, 2])  # fmt: skip
MATRIX = normal(5, 4)
unary("linear", X, lambda x: x @ MATRIX.T.astype(float) + BIAS[:5], weight=MATRIX, bias=BIAS[:5])
case("matmul", lambda x0, x1: mb.matmul(x=x0, y=x1), (X, normal(2, 4, 5)), np.matmul)
case(
    "matmul",
    lambda x0, x1: mb.matmul(x=x0, y=x1, transpose_x=True, transpose_y=True),
    (X, normal(5, 3)),
    lambda x, y: x.swapaxes(1, 2) @ y.T,
)
case(
    "einsum",
    lambda x0, x1: mb.einsum(values=(x0, x1), equation="nchw,nwhu->nchu"),
    (MAP, normal(2, 5, 7, 3)),
    lambda x, y: np.einsum("nchw,nwhu->nchu", x, y),
)
QUERY, KEY, VALUE = normal(2, 3, 5, 8), normal(2, 3, 7, 8), normal(2, 3, 7, 4)
case("scaled_dot_product_attention", lambda x0, x1, x2: mb.scaled_dot_product_attention(query=x0, key=x1, value=x2),
     (QUERY, KEY, VALUE), lambda *v: F.scaled_dot_product_attention(*map(t, v)), "iOS18")  # fmt: skip
case(
    "scaled_dot_product_attention",
    lambda x0, x1, x2, x3: mb.scaled_dot_product_attention(query=x0, key=x1, value=x2, attn_mask=x3),
    (QUERY, KEY, VALUE, normal(5, 7)),
    lambda *v: F.scaled_dot_product_attention(*map(t, v)),
    "iOS18",
)
case(
    "scaled_dot_product_attention",
    lambda x0, x1, x2: mb.scaled_dot_product_attention(
        query=x0, key=x1, value=x2, attn_mask=np.tril(np.ones((5, 7), dtype=bool))
    ),
    (QUERY, KEY, VALUE),
    lambda *v: F.scaled_dot_product_attention(*map(t, v), attn_mask=torch.ones(5, 7, dtype=torch.bool).tril()),
    "iOS18",
)
MEAN, SPREAD = normal(4), uniform(0.5, 2, 4)
unary("batch_norm", MAP, lambda x: F.batch_norm(t(x), t(MEAN), t(SPREAD), t(SLOPES), t(BIAS[:4]), eps=0.01), mean=MEAN,
      variance=SPREAD, gamma=SLOPES, beta=BIAS[:4], epsilon=f32(0.01))  # fmt: skip
unary("instance_norm", MAP, lambda x: F.instance_norm(t(x), weight=t(SLOPES), bias=t(BIAS[:4]), eps=0.01), gamma=SLOPES,
      beta=BIAS[:4], epsilon=f32(0.01))  # fmt: skip
unary("layer_norm", X, lambda x: F.layer_norm(t(x), [4], t(SLOPES), t(BIAS[:4]), 0.01), axes=[-1], gamma=SLOPES, beta=BIAS[:4],
      epsilon=f32(0.01))  # fmt: skip
unary("layer_norm", X, lambda x: F.layer_norm(t(x), [3, 4]), axes=[1, 2])
unary("layer_norm", X, lambda x: F.layer_norm(t(x.swapaxes(1, 2)), [3]).mT, axes=[1])
unary("l2_norm", MAP, lambda x: x / np.sqrt((x * x).sum((1, 2, 3), keepdims=True) + 0.1), epsilon=f32(0.1))
unary("local_response_norm", MAP, lambda x: F.local_response_norm(t(x), 3, 0.01, 0.6, 1.5), size=3, alpha=f32(0.01),
      beta=f32(0.6), k=f32(1.5))  # fmt: skip
unary("max_pool", MAP, lambda x: F.max_pool2d(t(x), (3, 2), 2, (1, 0)), kernel_sizes=[3, 2], strides=[2, 2], pad_type="custom",
      pad=[1, 1, 0, 0])  # fmt: skip
unary("max_pool", MAP, lambda x: F.max_pool2d(t(x), 3, 2, 1, ceil_mode=True), kernel_sizes=[3, 3], strides=[2, 2],
      pad_type="custom", pad=[1, 1, 1, 1], ceil_mode=True)  # fmt: skip
unary("avg_pool", MAP, lambda x: F.avg_pool2d(t(x), 3, 2, 1), kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom",
      pad=[1, 1, 1, 1])  # fmt: skip
unary("avg_pool", MAP, lambda x: F.avg_pool2d(t(x), 3, 1, 1, count_include_pad=False), kernel_sizes=[3, 3], strides=[1, 1],
      pad_type="same", exclude_padding_from_average=True)  # fmt: skip
unary("avg_pool", MAP, lambda x: F.avg_pool2d(t(x), 2, 2, 0, ceil_mode=True), kernel_sizes=[2, 2], strides=[2, 2],
      pad_type="valid", ceil_mode=True)  # fmt: skip
unary("l2_pool", MAP, lambda x: F.lp_pool2d(t(x), 2, 2, 1), kernel_sizes=[2, 2], strides=[1, 1], pad_type="valid")

# Resampling

unary("upsample_nearest_neighbor", MAP, lambda x: x.repeat(2, -2).repeat(3, -1), scale_factor_height=2, scale_factor_width=3)
unary("upsample_nearest_neighbor", MAP[0], lambda x: F.interpolate(t(x)[None], scale_factor=(1.5, 2.0))[0],
      scale_factor_height=f32(1.5), scale_factor_width=f32(2))  # fmt: skip
for align in (True, False):
    unary("upsample_bilinear", MAP, lambda x, a=align: F.interpolate(t(x), size=(14, 12), mode="bilinear", align_corners=a),
          scale_factor_height=f32(2), scale_factor_width=f32(2.5), align_corners=align)  # fmt: skip
unary("resize_nearest_neighbor", MAP, lambda x: F.interpolate(t(x), size=(4, 11)), target_size_height=4, target_size_width=11)
for mode, align in (("STRICT_ALIGN_CORNERS", True), ("ALIGN_CORNERS", True), ("UNALIGN_CORNERS", False)):
    unary("resize_bilinear", MAP, lambda x, a=align: F.interpolate(t(x), size=(9, 3), mode="bilinear", align_corners=a),
          target_size_height=9, target_size_width=3, sampling_mode=mode)  # fmt: skip
# On a ramp the result is where it was taken: the numbers are those of MIL's documentation, for 2 → 5.
RAMP = np.tile(np.arange(2, dtype=f32), (2, 1))[None, None]
for mode, places in (
    ("UNALIGN_CORNERS", [0, 0.1, 0.5, 0.9, 1]), ("STRICT_ALIGN_CORNERS", [0, 0.25, 0.5, 0.75, 1]),
    ("DEFAULT", [0, 0.4, 0.8, 1, 1]), ("OFFSET_CORNERS", [0.1, 0.3, 0.5, 0.7, 0.9]),
):  # fmt: skip
    unary("resize_bilinear", RAMP, lambda x, p=places: np.tile(p, (1, 1, 2, 1)), target_size_height=2, target_size_width=5,
          sampling_mode=mode)  # fmt: skip
unary("resize_bilinear", RAMP, lambda x: np.full((1, 1, 1, 1), 0.5), target_size_height=1, target_size_width=1,
      sampling_mode="ALIGN_CORNERS")  # fmt: skip
unary("resize", MAP, lambda x: F.interpolate(t(x), size=(7, 9), mode="bilinear", align_corners=True), shape=[1, 0, 9],
      resized_dims=np.uint32(2), sampling_mode="STRICT_ALIGN_CORNERS")  # fmt: skip
unary("resize", MAP, lambda x: F.interpolate(t(x), size=(3, 9)), shape=[3, 9], resized_dims=np.uint32(2),
      interpolation_mode="NEAREST_NEIGHBOR")  # fmt: skip
unary("crop", MAP, lambda x: x[..., 1:-2, 1:], crop_height=[1, 2], crop_width=[1, 0])

# Integers for activations

SCALES, ZEROS = uniform(0.02, 0.05, 4), integers(-9, 9, 4).astype(np.int8)


def on_grid(x: np.ndarray) -> np.ndarray:
    scale, zero = SCALES[:, None, None], ZEROS[:, None, None]
    return np.clip(np.round(x.astype(f32) / scale) + zero, -128, 127)


case(
    "quantize",
    lambda x0: mb.cast(x=mb.quantize(input=x0, scale=SCALES, zero_point=ZEROS, axis=1, output_dtype="int8"), dtype="int32"),
    2 * MAP,
    on_grid,
)
case("quantize", lambda x0: mb.cast(x=mb.quantize(input=x0, scale=f32(0.5), output_dtype="uint8"), dtype="int32"),
     np.array([-3, 0.25, 0.75, 1.25, 63.9, 999], f32), lambda x: np.array([0, 0, 2, 2, 128, 255]))  # fmt: skip
case(
    "dequantize",
    lambda x0: mb.dequantize(input=mb.cast(x=x0, dtype="int8"), scale=SCALES, zero_point=ZEROS, axis=-3),
    integers(-128, 128, 2, 4, 3, 3),
    lambda x: (x - ZEROS[:, None, None]) * SCALES[:, None, None].astype(float),
)
case("dequantize", lambda x0: mb.dequantize(input=mb.cast(x=x0, dtype="uint8"), scale=f32(0.5), zero_point=np.uint8(128)),
     integers(0, 256, 5), lambda x: (x - 128.0) / 2)  # fmt: skip


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.operator)
def test_operator(one: Case, evaluate: Evaluate) -> None:
    one.check(evaluate)


def test_every_operator_has_a_case() -> None:
    CASES.assert_complete("nn", "resize", "quantization")
