"""Frames between a parent and the child that runs its programs: what goes in comes out, and nothing else is taken for a frame."""

import contextlib
import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from edge_sd.errors import EdgeSDError
from edge_sd.runtimes import _frames as frames

TENSORS = st.sampled_from([np.float32, np.float16, np.int32]).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
)
TEXTS = st.text(max_size=50)
FAULTS = st.builds(frames.Fault, message=TEXTS, hint=TEXTS, code=st.integers(0, 9))
SPECS = st.lists(st.tuples(st.sampled_from([3, 5, 6]), st.lists(st.integers(0, 9), max_size=4).map(tuple)), max_size=3).map(tuple)
READY = st.builds(
    frames.Ready, programs=st.lists(st.builds(frames.Signature, inputs=SPECS, outputs=SPECS), max_size=3).map(tuple)
)
RESPONSES = st.one_of(TENSORS.map(frames.encode_answer), FAULTS.map(frames.encode_fault), READY.map(frames.encode_ready))


def same(left: NDArray[Any], right: NDArray[Any]) -> bool:
    return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.lists(TENSORS, max_size=4)), max_size=3))
def test_requests_come_out_as_they_went_in_one_after_the_other(requests: list[tuple[int, list[NDArray[Any]]]]) -> None:
    stream = io.BytesIO(b"".join(frames.encode_request(program, tensors) for program, tensors in requests))
    for program, tensors in requests:
        found = frames.read_request(stream)
        assert found is not None
        assert found[0] == program
        assert all(same(*pair) for pair in zip(tensors, found[1], strict=True))
        assert all(tensor.flags.writeable for tensor in found[1])
    assert frames.read_request(stream) is None


@given(TENSORS, FAULTS, READY)
def test_responses_come_out_as_they_went_in(tensor: NDArray[Any], fault: frames.Fault, ready: frames.Ready) -> None:
    encoded = frames.encode_answer(tensor) + frames.encode_fault(fault) + frames.encode_ready(ready)
    stream = io.BytesIO(encoded)
    found = frames.read_response(stream)
    assert isinstance(found, np.ndarray)
    assert same(tensor, found)
    assert (frames.read_response(stream), frames.read_response(stream)) == (fault, ready)


def test_an_array_that_does_not_lie_row_by_row_is_sent_row_by_row() -> None:
    value = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)[::-1]
    found = frames.read_response(io.BytesIO(frames.encode_answer(value)))
    np.testing.assert_array_equal(found, value)


@given(TENSORS, st.data())
def test_a_request_that_is_cut_short_is_refused(tensor: NDArray[Any], data: st.DataObject) -> None:
    whole = frames.encode_request(1, (tensor,))
    end = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(frames.BrokenFrameError, match="ends in its middle"):
        frames.read_request(io.BytesIO(whole[:end]))


@given(RESPONSES, st.data())
def test_a_response_that_is_cut_short_is_refused(whole: bytes, data: st.DataObject) -> None:
    with pytest.raises(frames.BrokenFrameError, match="ends in its middle"):
        frames.read_response(io.BytesIO(whole[: data.draw(st.integers(0, len(whole) - 1))]))


@given(st.one_of(st.binary(max_size=80), st.lists(st.one_of(st.integers(0, 8), st.integers(0, 2**32 - 1)), max_size=12)))
def test_whatever_else_comes_is_an_error_of_ours_or_a_frame(hostile: bytes | list[int]) -> None:
    """Small numbers come more often: they get further."""
    data = hostile if isinstance(hostile, bytes) else struct.pack(f"<{len(hostile)}I", *hostile)
    for read in (frames.read_request, frames.read_response):
        with contextlib.suppress(EdgeSDError):
            read(io.BytesIO(data))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0, 17), "names 17 tensors"),
        ((0, 1, 4, 0), "dtype 4"),
        ((0, 1, 6, 9), "9 dimensions"),
        ((0, 1, 6, 2, 65536, 65536), "too large"),
        ((0, 1, 6, 4, 65536, 65536, 65536, 65536), "too large"),
        ((0, 1, 6, 3, 2**32 - 1, 2**32 - 1, 0), "too large"),
    ],
)
def test_a_hostile_request_is_refused_before_anything_is_made_for_it(numbers: tuple[int, ...], said: str) -> None:
    with pytest.raises(frames.BrokenFrameError, match=said):
        frames.read_request(io.BytesIO(struct.pack(f"<{len(numbers)}I", *numbers)))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (struct.pack("<I", 3), "unknown status 3"),
        (struct.pack("<2I", 1, 2**20 + 1), "text of 1048577 bytes"),
        (struct.pack("<2I", 1, 2) + b"{}", "no Fault"),
        (struct.pack("<2I", 2, 2) + b"\xff\xfe", "no Ready"),
    ],
)
def test_a_hostile_response_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(frames.BrokenFrameError, match=said):
        frames.read_response(io.BytesIO(data))


def test_what_no_frame_holds_is_refused_before_it_is_sent() -> None:
    for tensor in (np.zeros(1), np.zeros((1,) * 9, np.float32), np.array(["text"])):
        with pytest.raises(EdgeSDError, match="cannot be given"):
            frames.encode_request(0, (tensor,))
    with pytest.raises(EdgeSDError, match="at most 16 tensors"):
        frames.encode_request(0, (np.zeros(1, np.float32),) * 17)


def test_a_fault_of_any_length_fits_a_frame() -> None:
    fault = frames.Fault(message="\0é" * 2**20, hint="\0" * 2**20, code=5)
    found = frames.read_response(io.BytesIO(frames.encode_fault(fault)))
    assert isinstance(found, frames.Fault)
    assert found.code == 5
    assert fault.message.startswith(found.message)


def test_a_name_that_is_no_text_does_not_keep_an_error_back() -> None:
    found = frames.read_response(io.BytesIO(frames.encode_fault(frames.Fault(message="a\udcff.pte", hint="b", code=1))))
    assert found == frames.Fault(message="a?.pte", hint="b", code=1)
