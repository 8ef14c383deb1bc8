"""Evidence: what is gathered, what is written, and what is refused when it is read back."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edge_sd.bundle import Bundle
from edge_sd.errors import EdgeSDError
from edge_sd.files import read_tensors, write_tensors
from edge_sd.runtimes import find_runtime
from edge_sd.runtimes.evidence import Evidence, EvidenceHeader, gather, header_of, load_evidence, save_evidence


@pytest.fixture(scope="module")
def evidence(torch_bundle: Bundle) -> tuple[Evidence, ...]:
    return gather(torch_bundle, find_runtime("torch"))


@pytest.fixture
def saved(torch_bundle: Bundle, evidence: tuple[Evidence, ...], tmp_path: Path) -> Path:
    save_evidence(tmp_path / "evidence.safetensors", header_of(torch_bundle, find_runtime("torch")), evidence)
    return tmp_path / "evidence.safetensors"


def rewrite(path: Path, bundle: Bundle, **changes: np.ndarray | None) -> None:
    """Write evidence again with tensors replaced, or left out where None."""
    header, tensors = read_tensors(EvidenceHeader, path)
    tensors |= {name.replace("_", "."): value for name, value in changes.items() if value is not None}
    for name, value in changes.items():
        if value is None:
            del tensors[name.replace("_", ".")]
    write_tensors(path, tensors, header)


def test_the_reference_s_evidence_is_the_goldens(torch_bundle: Bundle, evidence: tuple[Evidence, ...]) -> None:
    for golden, found in zip(torch_bundle.golden.trajectories, evidence, strict=True):
        np.testing.assert_array_equal(found.forced, golden.predictions)
        np.testing.assert_array_equal(found.free, golden.samples)
        np.testing.assert_array_equal(found.last, golden.final)


def test_evidence_comes_back(torch_bundle: Bundle, evidence: tuple[Evidence, ...], saved: Path) -> None:
    header, found = load_evidence(saved, torch_bundle)
    assert (header.runtime, header.bundle_digest) == ("torch", torch_bundle.manifest.digest)
    for before, after in zip(evidence, found, strict=True):
        for field in dataclasses.fields(Evidence):
            left, right = getattr(before, field.name), getattr(after, field.name)
            assert (left is None) == (right is None)
            if left is not None:
                np.testing.assert_array_equal(left, right)


def test_evidence_of_another_bundle(torch_bundle: Bundle, evidence: tuple[Evidence, ...], tmp_path: Path) -> None:
    header = header_of(torch_bundle, find_runtime("torch"))
    for other in ({"bundle_digest": "0" * 64}, {"seed": header.seed + 1}):
        save_evidence(tmp_path / "other.safetensors", header.model_copy(update=other), evidence)
        with pytest.raises(EdgeSDError, match="is of another bundle than"):
            load_evidence(tmp_path / "other.safetensors", torch_bundle)


def test_evidence_that_is_not_whole(torch_bundle: Bundle, saved: Path) -> None:
    intact = saved.read_bytes()
    shape = torch_bundle.golden.trajectories[1].predictions.shape
    cases: list[tuple[dict[str, np.ndarray | None], str]] = [
        ({"1_forced": None}, r"1\.forced is missing"),
        ({"1_forced": np.zeros(shape, np.float64)}, r"1\.forced is float64"),
        ({"0_last": np.zeros((3, 16, 15), np.float32)}, r"0\.last is float32 \(3, 16, 15\)"),
        ({"1_forced": np.full(shape, np.nan, np.float32)}, "a NaN or an infinity"),
        ({"9_forced": np.zeros(shape, np.float32)}, r"no evidence: 9\.forced"),
    ]
    for changes, said in cases:
        rewrite(saved, torch_bundle, **changes)
        with pytest.raises(EdgeSDError, match=said):
            load_evidence(saved, torch_bundle)
        saved.write_bytes(intact)
    saved.write_bytes(intact[:-7])
    with pytest.raises(EdgeSDError, match="not a whole safetensors file"):
        load_evidence(saved, torch_bundle)


def test_1000_mutated_files_raise_nothing_but_our_errors(torch_bundle: Bundle, saved: Path) -> None:
    """Bytes of the header, mostly; a value that changed and is finite is evidence like any other."""
    intact, rng = saved.read_bytes(), np.random.default_rng(5)
    end = intact.index(b"}}") + 2
    refused = 0
    for _ in range(1000):
        data = bytearray(intact)
        for place in rng.integers(0, end, rng.integers(1, 4)):
            data[place] = rng.integers(0, 256)
        saved.write_bytes(bytes(data[: rng.integers(0, len(data))]) if rng.random() < 0.2 else bytes(data))
        try:
            load_evidence(saved, torch_bundle)
        except EdgeSDError as error:
            assert error.hint  # noqa: PT017 (an error may come, it need not)
            refused += 1
    assert refused > 900
