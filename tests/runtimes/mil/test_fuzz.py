"""Damaged packages, by the thousand: whatever is done to the bytes, an EdgeSDError is the worst that happens.

EDGE_SD_FUZZ multiplies the number of cases (EDGE_SD_FUZZ=50 for an hour of it); a case that fails is named by its seed.
"""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mil_cases import f32, mb, normal

from edge_sd.errors import EdgeSDError
from edge_sd.quiet import quiet
from edge_sd.runtimes.mil import load_evaluator

with quiet():
    from coremltools.converters.mil.mil import types
    from coremltools.proto import Model_pb2

MakePackage = Callable[..., Path]
# Cases of each kind of damage, to each of the two packages: 2 · (1000 + 1000 + 1000 + 200).
CASES = {"model": 1000, "weights": 1000, "manifest": 200}
FACTOR = int(os.environ.get("EDGE_SD_FUZZ", "1"))
MODEL, WEIGHTS, MANIFEST = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin", "Manifest.json"
INPUT = normal(1, 4, 6, 6)


def older(x0: Any) -> Any:
    """iOS 16: packed tables, masks, affine weights, halves."""
    table = mb.constexpr_lut_to_dense(
        indices=np.arange(18, dtype=np.uint8), lut=normal(16).astype(f32), shape=np.array([4, 1, 3, 3], np.uint32)
    )
    mask = np.full(18, 0b101, np.uint8)
    sparse = mb.constexpr_sparse_to_dense(nonzero_data=normal(36).astype(f32), mask=mask, shape=np.array([4, 4, 3, 3], np.uint32))
    affine = mb.constexpr_affine_dequantize(
        quantized_data=np.arange(48, dtype=np.int8).reshape(4, 12), scale=normal(4), zero_point=np.int8(3), axis=np.int32(0)
    )
    x = mb.conv(x=x0, weight=table, pad_type="same", groups=4)
    x = mb.conv(x=mb.gelu(x=x, mode="EXACT"), weight=sparse, pad_type="custom", pad=[1, 1, 1, 1], strides=[2, 2])
    x = mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=2)
    left, right = mb.split(x=mb.cast(x=mb.concat(values=(x, x0), axis=1), dtype="fp16"), num_splits=2, axis=1)
    x = mb.pad(x=mb.cast(x=mb.add(x=left, y=right), dtype="fp32"), pad=[1, 0, 0, 2], mode="reflect")
    x = mb.slice_by_index(x=x, begin=[0, 0, 1, 0], end=[1, 4, 7, 6], stride=[1, 1, 1, 2])
    x = mb.layer_norm(x=mb.reshape(x=x, shape=[1, 6, 12]), axes=[-1], gamma=normal(12), beta=normal(12))
    return mb.softmax(x=mb.linear(x=x, weight=affine), axis=-1)


def newer(x0: Any) -> Any:
    """iOS 18: blocks of integers of 4 bits, tables of blocks, sparse integers, integer activations, attention."""
    data = (np.arange(144).reshape(4, 4, 3, 3) % 16 - 8).astype(types.nptype_from_builtin(types.int4))
    blocks = mb.constexpr_blockwise_shift_scale(data=data, scale=normal(4, 2, 1, 1))
    indices = (np.arange(48).reshape(4, 12) % 8).astype(types.nptype_from_builtin(types.uint3))
    tables = mb.constexpr_lut_to_dense(indices=indices, lut=normal(2, 1, 8, 1))
    bits = (np.arange(48).reshape(4, 12) % 3 == 0).astype(types.nptype_from_builtin(types.uint1))
    mask, values = mb.constexpr_sparse_blockwise_shift_scale(
        data_mask=bits, nonzero_data=np.arange(16, dtype=np.int8), scale=normal(4, 1), offset=np.ones((4, 1), np.int8)
    )
    x = mb.dequantize(input=mb.quantize(input=x0, scale=f32(0.1), output_dtype="int8"), scale=f32(0.1))
    x = mb.reshape(x=mb.conv(x=x, weight=blocks, pad_type="same"), shape=[1, 4, 3, 12])
    query = mb.linear(x=x, weight=tables)
    key = mb.linear(x=x, weight=mb.constexpr_sparse_to_dense(nonzero_data=values, mask=mask))
    x = mb.scaled_dot_product_attention(query=query, key=key, value=key)
    x = mb.gather(x=mb.transpose(x=x, perm=[0, 2, 1, 3]), indices=np.array([2, 0, -1], np.int32), axis=1)
    return mb.reduce_mean(x=mb.tile(x=x, reps=[1, 2, 1, 1]), axes=[2, 3], keep_dims=True)


@pytest.fixture(scope="module", params=[(older, "iOS16"), (newer, "iOS18")], ids=["iOS16", "iOS18"])
def sound(request: pytest.FixtureRequest, make_package: MakePackage) -> Path:
    body, system = request.param
    path = make_package(body, [INPUT], system)
    assert outcome(path)
    return path


def outcome(path: Path) -> bool:
    """Whether it still is a package that can be evaluated; what is raised but an EdgeSDError is what is looked for."""
    try:
        evaluator = load_evaluator(path)
        evaluator({name: np.resize(INPUT, type_.shape).astype(type_.dtype) for name, type_ in evaluator.inputs.items()})
    except EdgeSDError as error:
        refused = error
    else:
        return True
    assert refused.hint
    return False


def bytes_damaged(data: bytes, rng: random.Random) -> bytes:
    """One to four places changed, or the end cut off."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(damaged)) if damaged else 0
        match rng.randrange(6):
            case 0:
                damaged[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                damaged[place : place + 1] = bytes([(damaged[place : place + 1] or b"\0")[0] ^ 1 << rng.randrange(8)])
            case 2:
                del damaged[place : place + rng.choice((1, 2, 8, 64))]
            case 3:
                damaged[place:place] = rng.randbytes(rng.choice((1, 2, 8)))
            case 4:
                damaged[place : place + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7))
            case _:
                del damaged[place:]
    return bytes(damaged)


def fields(message: Any) -> Iterator[tuple[Any, Any]]:
    """Every field that is set, of a message and of those in it."""
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            inner = [value[key] for key in value] if field.message_type.fields_by_name["value"].message_type else []
        else:
            inner = list(value) if field.is_repeated else [value]
        for one in inner:
            yield from fields(one)


NUMBERS = (0, 1, 2, 3, 5, 7, 64, 2**20, 2**31 - 1, 2**31, 2**63 - 1, 2**64 - 1, -1, -2, -(2**31), 0.5, -1.5, 1e30, float("nan"))


def one_field_damaged(data: bytes, rng: random.Random) -> bytes:
    """A message that parses, and says something else in one to three of its fields."""
    spec = Model_pb2.Model.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        message, field = rng.choice(list(fields(spec)))
        value = getattr(message, field.name)
        try:
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                del value[rng.choice(list(value))]
            elif field.is_repeated:
                changed_list(value, field, rng)
            elif field.message_type is not None:
                message.ClearField(field.name)
            else:
                setattr(message, field.name, changed(value, rng))
        except (ValueError, TypeError, IndexError, OverflowError, UnicodeDecodeError):
            pass  # the field cannot hold that
    return bytes(spec.SerializeToString())


def changed_list(value: Any, field: Any, rng: random.Random) -> None:
    place = rng.randrange(len(value))
    if rng.random() < 0.3:
        del value[place]
    elif field.message_type is not None:
        value[rng.randrange(len(value))].CopyFrom(value[place])
    elif rng.random() < 0.2:
        value.extend(list(value)[: rng.randrange(1, 4)])
    else:
        value[place] = changed(value[place], rng)


def changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return type(value)(rng.choice((value + 1, value - 1, *NUMBERS)))
    if isinstance(value, bytes):
        return bytes_damaged(value, rng)
    return rng.choice(("", value[1:], value + "_", "x0", "add", "relu", "same", "int32", "../x", "@model_path/../a\0", "\u20ac"))


def damaged_ways(
    path: Path, copy: Path, file: str, damage: Callable[[bytes, random.Random], bytes], cases: int
) -> tuple[int, int]:
    """Evaluate a package that is damaged in so many ways. => how many are still sound, how many are not"""
    shutil.copytree(path, copy)
    data, counts = (path / file).read_bytes(), [0, 0]
    for seed in range(cases):
        (copy / file).write_bytes(damage(data, random.Random(seed)))
        try:
            counts[outcome(copy)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed} of {damage.__name__} to {file} ends in {error!r}") from error
    return counts[True], counts[False]


@pytest.mark.filterwarnings("default")  # what torch warns of in a damaged program is not looked at
@pytest.mark.parametrize(
    ("file", "damage"),
    [(MODEL, bytes_damaged), (MODEL, one_field_damaged), (WEIGHTS, bytes_damaged), (MANIFEST, bytes_damaged)],
    ids=["model-bytes", "model-fields", "weights-bytes", "manifest-bytes"],
)
def test_damage_ends_in_an_error_of_ours(
    file: str, damage: Callable[[bytes, random.Random], bytes], sound: Path, tmp_path: Path
) -> None:
    cases = FACTOR * CASES[{MODEL: "model", WEIGHTS: "weights", MANIFEST: "manifest"}[file]]
    still_sound, refused = damaged_ways(sound, tmp_path / "damaged.mlpackage", file, damage, cases)
    assert still_sound + refused == cases
    assert refused > cases // 20


def test_every_byte_cut_off_is_missed(sound: Path, tmp_path: Path) -> None:
    """Of the weights: a file that was copied in part never passes for the whole."""
    copy = tmp_path / "cut.mlpackage"
    shutil.copytree(sound, copy)
    data = (sound / WEIGHTS).read_bytes()
    for size in range(len(data.rstrip(b"\0")) - 1, -1, -97):
        (copy / WEIGHTS).write_bytes(data[:size])
        assert not outcome(copy), size
    (copy / WEIGHTS).unlink()
    assert not outcome(copy)
