"""Compressed weights: saved by coremltools' own builder, unpacked here, compared with its reader's own arithmetic and by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sd.errors import EdgeSDError
from edge_sd.quiet import quiet
from edge_sd.runtimes.mil import Evaluator, load_evaluator
from edge_sd.runtimes.mil.blob import from_bytes, packed_bytes, unpack
from edge_sd.runtimes.mil.constexpr import UNPACKERS
from edge_sd.runtimes.mil.types import TensorType

with quiet():
    import coremltools
    from coremltools.converters.mil import Builder as Mb
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.converters.mil.mil import types
    from coremltools.optimize import _utils as compression

MakePackage = Callable[..., Path]
RNG = np.random.default_rng(3)
HALF, SINGLE = np.float16, np.float32


def narrow(values: np.ndarray, dtype: str) -> np.ndarray:
    """As coremltools marks integers of fewer bits than a byte."""
    return values.astype(types.nptype_from_builtin(types.string_to_builtin(dtype)))


def affine(dtype: type, *, vector: bool) -> Callable[[], Any]:
    data = RNG.integers(-128, 128, (3, 4, 2)).astype(np.int8)
    scale = RNG.uniform(0.01, 0.1, 4 if vector else ()).astype(dtype)
    zero = RNG.integers(-20, 20, 4).astype(np.int8) if vector else np.int8(-3)
    scale = scale if vector else dtype(scale)
    return lambda: Mb.constexpr_affine_dequantize(quantized_data=data, zero_point=zero, scale=scale, axis=np.int32(-2))


def packed_table(bits: int, dtype: type) -> Callable[[], Any]:
    indices = RNG.integers(0, 2**bits, (5, 7)).astype(np.uint8)
    packed = compression.pack_elements_into_bits(indices.reshape(-1), bits)
    table = np.sort(RNG.normal(size=2**bits)).astype(dtype)
    return lambda: Mb.constexpr_lut_to_dense(indices=packed, lut=table, shape=np.array([5, 7], np.uint32))


def packed_mask() -> Any:
    mask = RNG.integers(0, 2, 21).astype(np.uint8)
    values = RNG.normal(size=int(mask.sum())).astype(HALF)
    bits = np.packbits(mask, bitorder="little")
    return Mb.constexpr_sparse_to_dense(nonzero_data=values, mask=bits, shape=np.array([3, 7], np.uint32))


def blocks(dtype: str, scales: tuple[int, ...], *, offset: bool, to: type = SINGLE) -> Callable[[], Any]:
    low, high = {"int4": (-8, 8), "uint4": (0, 16), "int8": (-128, 128), "uint8": (0, 256)}[dtype]
    data = narrow(RNG.integers(low, high, (4, 6, 2)), dtype)
    scale = RNG.uniform(0.01, 0.2, scales).astype(to)
    shift = {"offset": narrow(RNG.integers(max(low, -8), min(high, 8), scales), dtype)} if offset else {}
    return lambda: Mb.constexpr_blockwise_shift_scale(data=data, scale=scale, **shift)


def tables(bits: int, shape: tuple[int, ...], vector: int = 1, axis: int | None = None) -> Callable[[], Any]:
    indices = narrow(RNG.integers(0, 2**bits, (4, 6)), f"uint{bits}")
    lut = RNG.normal(size=(*shape, 2**bits, vector)).astype(HALF)
    where = {} if axis is None else {"vector_axis": np.int32(axis)}
    return lambda: Mb.constexpr_lut_to_dense(indices=indices, lut=lut, **where)


MASK = narrow(RNG.integers(0, 2, (4, 6)), "uint1")
PLACES = int(MASK.astype(int).sum())


def mask_of_bits() -> Any:
    return Mb.constexpr_sparse_to_dense(nonzero_data=narrow(RNG.integers(-8, 8, PLACES), "int4"), mask=MASK)


def sparse_tables(vector: int, axis: int | None) -> Callable[[], Any]:
    indices = narrow(RNG.integers(0, 4, PLACES), "uint2")
    lut = RNG.normal(size=(1, 2, 4, vector)).astype(HALF)
    where = {} if axis is None else {"vector_axis": np.int32(axis)}

    def build() -> Any:
        mask, values = Mb.constexpr_lut_to_sparse(indices_mask=MASK, indices_nonzero_data=indices, lut=lut, **where)
        return Mb.constexpr_sparse_to_dense(nonzero_data=values, mask=mask)

    return build


def sparse_blocks() -> Any:
    data = RNG.integers(-128, 128, PLACES).astype(np.int8)
    scale, offset = RNG.uniform(0.1, 1, (4, 2)).astype(HALF), RNG.integers(-5, 5, (4, 2)).astype(np.int8)
    mask, values = Mb.constexpr_sparse_blockwise_shift_scale(data_mask=MASK, nonzero_data=data, scale=scale, offset=offset)
    return Mb.constexpr_sparse_to_dense(nonzero_data=values, mask=mask)


def of_halves() -> Any:
    return Mb.constexpr_cast(source_val=RNG.normal(size=(3, 9)).astype(HALF), output_dtype="fp32")


CASES: list[tuple[str, str, Callable[[], Any]]] = [
    ("constexpr_affine_dequantize", "iOS16", affine(SINGLE, vector=True)),
    ("constexpr_affine_dequantize", "iOS17", affine(HALF, vector=False)),
    ("constexpr_cast", "iOS16", of_halves),
    *(("constexpr_lut_to_dense", "iOS16", packed_table(bits, HALF)) for bits in (1, 2, 4, 6, 8)),
    ("constexpr_sparse_to_dense", "iOS16", packed_mask),
    ("constexpr_blockwise_shift_scale", "iOS18", blocks("int4", (4, 3, 1), offset=False, to=HALF)),
    ("constexpr_blockwise_shift_scale", "iOS18", blocks("uint4", (1, 6, 2), offset=True)),
    ("constexpr_blockwise_shift_scale", "iOS18", blocks("int8", (4, 1, 1), offset=True)),
    ("constexpr_blockwise_shift_scale", "iOS18", blocks("uint8", (2, 1, 2), offset=False)),
    *(("constexpr_lut_to_dense", "iOS18", tables(bits, (2, 3))) for bits in (1, 2, 3, 4, 6, 8)),
    ("constexpr_lut_to_dense", "iOS18", tables(3, (2, 1), 3, 0)),
    ("constexpr_lut_to_dense", "iOS18", tables(2, (4, 2), 2, -1)),
    ("constexpr_sparse_to_dense", "iOS18", mask_of_bits),
    ("constexpr_lut_to_sparse", "iOS18", sparse_tables(1, None)),
    ("constexpr_lut_to_sparse", "iOS18", sparse_tables(2, 1)),
    ("constexpr_lut_to_sparse", "iOS18", sparse_tables(2, 0)),
    ("constexpr_sparse_blockwise_shift_scale", "iOS18", sparse_blocks),
]


@pytest.mark.parametrize(("operator", "system", "build"), CASES, ids=[f"{name}-{system}" for name, system, _ in CASES])
def test_it_is_unpacked_as_coremltools_unpacks_it(
    operator: str, system: str, build: Callable[[], Any], make_package: MakePackage
) -> None:
    def body(x: Any) -> Any:
        weight = build()
        whole = Mb.reduce_sum(x=Mb.cast(x=weight, dtype="fp32")) if weight.dtype == types.fp16 else weight
        return Mb.add(x=x, y=1.0 if weight.dtype == types.int4 else Mb.reduce_sum(x=whole))

    path = make_package(body, [np.zeros((1, 2), SINGLE)], system)
    evaluator = load_evaluator(path)
    assert operator in evaluator.operators.values()
    with quiet():
        model = coremltools.models.MLModel(str(path), skip_model_load=True)
        spec = model.get_spec()
        theirs = load(spec, spec.specificationVersion, model.weights_dir).functions["main"]
    names = [name for name, made_by in evaluator.operators.items() if made_by.startswith("constexpr_")]
    ours = evaluator.values({"x0": np.zeros((1, 2), SINGLE)}, names)
    compared = 0
    for operation in theirs.operations:
        if operation.op_type.startswith("constexpr_"):
            expected = operation.materialized_val_inference()
            for output, value in zip(operation.outputs, expected if isinstance(expected, tuple) else (expected,), strict=True):
                found = ours[output.name]
                assert found.shape == np.shape(value)
                np.testing.assert_array_equal(found, np.asarray(value).astype(found.dtype))
                compared += 1
    assert compared == len(names)


def test_every_unpacker_has_a_case() -> None:
    assert {name for name, _, _ in CASES} == set(UNPACKERS)


# By hand

PAIR = {"scale": np.ones(2), "zero_point": np.zeros(2)}


def test_integers_are_unpacked_from_the_lowest_bit_on() -> None:
    np.testing.assert_array_equal(unpack(np.array([0b01101100, 0b11], np.uint8), 2, 5), [0, 3, 2, 1, 3])
    np.testing.assert_array_equal(unpack(np.array([0b11_010_001, 0b1], np.uint8), 3, 3), [1, 2, 7])


def test_four_bits_have_a_sign() -> None:
    np.testing.assert_array_equal(from_bytes(bytes([0x8F, 0x07]), TensorType("int4", (3,))), [-1, -8, 7])
    assert packed_bytes(TensorType("int4", (3,))) == 2
    assert packed_bytes(TensorType("uint6", (5,))) == 4


@pytest.mark.parametrize(
    ("operator", "parameters", "match"),
    [
        ("affine_dequantize", {**PAIR, "quantized_data": np.zeros((2, 3)), "axis": np.array(1)}, "2 scales"),
        ("affine_dequantize", {**PAIR, "quantized_data": np.zeros(2), "axis": np.array(4)}, "axis 4"),
        ("blockwise_shift_scale", {"data": np.zeros((2, 3)), "scale": np.ones((2, 2))}, "blocks"),
        ("blockwise_shift_scale", {"data": np.zeros((2, 3)), "scale": np.ones((0, 1))}, "blocks"),
        ("lut_to_dense", {"indices": np.zeros(3, np.uint8), "lut": np.ones(4), "shape": np.array([20])}, "hold no 20"),
        ("lut_to_dense", {"indices": np.zeros(3, np.uint8), "lut": np.ones(5), "shape": np.array([3])}, "table"),
        ("lut_to_dense", {"indices": np.zeros((2, 2)), "lut": np.ones((2, 2))}, "table of 2"),
        ("lut_to_dense", {"indices": np.zeros((2, 2)), "lut": np.ones((1, 1, 2, 3))}, "vectors"),
        ("sparse_to_dense", {"mask": np.array([1, 0, 1]), "nonzero_data": np.ones(3)}, "3,. values for 2"),
        ("sparse_to_dense", {"mask": "text", "nonzero_data": np.ones(3)}, "mask is text"),
        ("cast", {}, "source_val is missing"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(operator: str, parameters: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        UNPACKERS[f"constexpr_{operator}"](parameters)


def test_an_index_outside_of_its_table_is_refused(make_package: MakePackage) -> None:
    """The builder lets none pass: the table is cut short in the saved program."""
    build = packed_table(4, SINGLE)
    path = make_package(lambda x: Mb.add(x=x, y=Mb.reduce_sum(x=build())), [np.zeros((1, 2), SINGLE)], "iOS16")
    model = path / "Data/com.apple.CoreML/model.mlmodel"
    with quiet():
        from coremltools.proto import Model_pb2
    spec = Model_pb2.Model.FromString(model.read_bytes())
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    (operation,) = (one for one in block.operations if one.type.startswith("constexpr_"))
    operation.attributes["shape"].immediateValue.tensor.bytes.values = np.array([50, 7], np.uint32).tobytes()
    model.write_bytes(spec.SerializeToString())
    with pytest.raises(EdgeSDError, match="constexpr_lut_to_dense") as caught:
        load_evaluator(path)
    assert caught.value.hint


def test_constants_can_be_asked_for_without_running_anything(make_package: MakePackage) -> None:
    evaluator: Evaluator = load_evaluator(make_package(lambda x: Mb.add(x=x, y=of_halves()), [np.zeros((3, 9), SINGLE)], "iOS16"))
    (name,) = (name for name, made_by in evaluator.operators.items() if made_by == "constexpr_cast")
    seen: list[str] = []
    evaluator({"x0": np.zeros((3, 9), SINGLE)}, lambda operator, output, value: seen.append(operator))
    assert seen == ["add"]
    assert evaluator.values({"x0": np.zeros((3, 9), SINGLE)}, [name])[name].dtype == np.float32
