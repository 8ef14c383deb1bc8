"""Parity under planted faults: what is wrong with a runtime, where and by how much, must be what was planted."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from edge_sd.bundle import Bundle, trace
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation.metrics import SAME_DB, snr_db
from edge_sd.files import parse_model
from edge_sd.runnable import Session
from edge_sd.runtimes import find_runtime
from edge_sd.runtimes.parity import ParityResult, check_parity, compare

Fault = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
RNG = np.random.default_rng(8)
DIRECTION = RNG.standard_normal((1, 3, 16, 16))


class Faulty(Session):
    """The reference, whose predictions go through (sample, prediction, row of the plan) → prediction."""

    def __init__(self, bundle: Bundle, fault: Fault) -> None:
        self.reference, self.features, self.fault = find_runtime("torch").load(bundle), bundle.plan.features, fault
        self.sample_shape = self.reference.sample_shape
        self.seen: list[tuple[np.ndarray, int]] = []

    def __call__(self, sample: np.ndarray, time_features: np.ndarray) -> np.ndarray:
        (row,) = np.flatnonzero((self.features == time_features).all(1))
        self.seen.append((sample.copy(), int(row)))
        return self.fault(sample, self.reference(sample, time_features), int(row)).astype(np.float32)


def parity(
    bundle: Bundle, fault: Fault, gate_db: float = 80.0, observe: Callable[[int, int], None] | None = None
) -> ParityResult:
    session = Faulty(bundle, fault)
    return compare("tiny.edgesd", "faulty", "1.0", session, bundle.plan, bundle.golden, gate_db, observe or (lambda d, t: None))


def scaled(error: float) -> Fault:
    return lambda sample, prediction, row: prediction * (1 + error)


def pushed(error: float) -> Fault:
    """Add a fixed direction, `error` times as long as the prediction."""
    unit = DIRECTION / np.linalg.norm(DIRECTION)
    return lambda sample, prediction, row: prediction + error * np.linalg.norm(prediction) * unit


def at_row(row: int, fault: Fault) -> Fault:
    return lambda sample, prediction, found: fault(sample, prediction, found) if found == row else prediction


def teacher_forced(result: ParityResult) -> list[float]:
    return [step.teacher_forced_db for step in result.steps]


def free_running(result: ParityResult) -> list[float]:
    return [step.free_running_db for step in result.steps]


def test_the_reference_is_equal_to_itself_bit_for_bit(torch_bundle: Bundle) -> None:
    result = check_parity(torch_bundle, "torch")
    assert result.passed
    assert {*teacher_forced(result), *free_running(result), result.final_snr_db, result.final_psnr_db} == {SAME_DB}
    assert (result.bundle, result.runtime, result.trajectories) == ("tiny.edgesd", "torch", 3)
    assert [(step.row, step.timestep) for step in result.steps] == list(enumerate(torch_bundle.plan.timestep))


@pytest.mark.parametrize("error", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("kind", [scaled, pushed])
def test_a_relative_error_reads_as_many_decibels_as_it_has(
    kind: Callable[[float], Fault], error: float, torch_bundle: Bundle
) -> None:
    """‖reference‖² / ‖error · reference‖² = error⁻², at every step and whatever the model."""
    result = parity(torch_bundle, kind(error))
    np.testing.assert_allclose(teacher_forced(result), -20 * np.log10(error), atol=0.01)
    assert not result.passed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_fails(bad: float, torch_bundle: Bundle) -> None:
    def spoil(sample: np.ndarray, prediction: np.ndarray, row: int) -> np.ndarray:
        prediction.flat[0] = bad
        return prediction

    result = parity(torch_bundle, at_row(2, spoil))
    assert not result.passed
    assert result.worst.row == 2
    assert result.worst.teacher_forced_db == -SAME_DB
    assert (result.final_snr_db, result.final_psnr_db) == (-SAME_DB, -SAME_DB)
    assert json.loads(result.model_dump_json())["steps"][2]["teacher_forced_db"] == -SAME_DB


@pytest.mark.parametrize("row", range(5))
def test_a_fault_in_one_step_is_named_and_only_there(row: int, torch_bundle: Bundle) -> None:
    result = parity(torch_bundle, at_row(row, scaled(1e-2)))
    assert result.worst.row == row
    timestep = torch_bundle.plan.timestep[row]
    assert result.verdict == f"faulty: FAILED: the worst step is {row} (timestep {timestep:g}) at 40.0 dB, the gate is 80 dB"
    assert [found for found in teacher_forced(result) if found != SAME_DB] == [result.worst.teacher_forced_db]


@pytest.mark.parametrize("row", range(5))
def test_running_free_a_fault_shows_from_the_next_step_on(row: int, torch_bundle: Bundle) -> None:
    """Free-running decibels are of the sample that goes into a step: untouched up to the faulty one, adrift after it."""
    result = parity(torch_bundle, at_row(row, pushed(1e-2)))
    assert free_running(result)[: row + 1] == [SAME_DB] * (row + 1)
    assert max([*free_running(result)[row + 1 :], result.final_snr_db]) < 100


def test_free_running_decibels_are_those_of_the_runtimes_own_trajectory(torch_bundle: Bundle) -> None:
    result = parity(torch_bundle, pushed(1e-2))
    own = [trace(torch_bundle.plan, Faulty(torch_bundle, pushed(1e-2)), 0, index) for index in range(3)]
    pairs = list(zip(torch_bundle.golden.trajectories, own, strict=True))
    for row in range(5):
        expected = min(snr_db(golden.samples[row], mine.samples[row]) for golden, mine in pairs)
        assert free_running(result)[row] == expected
    assert result.final_snr_db == min(snr_db(golden.final, mine.final) for golden, mine in pairs)


def test_teacher_forced_steps_are_fed_the_references_samples(torch_bundle: Bundle) -> None:
    """Even a runtime whose own trajectory is lost at once."""
    session = Faulty(torch_bundle, scaled(10))
    compare("b", "r", "1", session, torch_bundle.plan, torch_bundle.golden, 80.0)
    for trajectory in torch_bundle.golden.trajectories:
        for row in range(5):
            assert any(found == row and np.array_equal(sample[0], trajectory.samples[row]) for sample, found in session.seen)


def test_the_worst_trajectory_decides(torch_bundle: Bundle) -> None:
    only = torch_bundle.golden.trajectories[1].samples[3]

    def fault(sample: np.ndarray, prediction: np.ndarray, row: int) -> np.ndarray:
        return prediction * 1.01 if np.array_equal(sample[0], only) else prediction

    result = parity(torch_bundle, fault)
    assert result.worst.row == 3
    assert result.worst.teacher_forced_db == pytest.approx(40, abs=0.01)
    assert not result.passed


def test_a_step_at_the_gate_passes_and_one_below_does_not(torch_bundle: Bundle) -> None:
    worst = parity(torch_bundle, scaled(1e-2)).worst.teacher_forced_db
    assert parity(torch_bundle, scaled(1e-2), gate_db=worst).passed
    assert not parity(torch_bundle, scaled(1e-2), gate_db=np.nextafter(worst, np.inf)).passed


def test_drift_alone_does_not_fail(torch_bundle: Bundle) -> None:
    """The gate is of the program; how far a free-running sample drifts is reported, and depends on the model."""

    def off_the_path(sample: np.ndarray, prediction: np.ndarray, row: int) -> np.ndarray:
        known = any(np.array_equal(sample[0], trajectory.samples[row]) for trajectory in torch_bundle.golden.trajectories)
        return prediction if known and row else prediction * (1 + 1e-5)

    result = parity(torch_bundle, off_the_path)
    assert result.passed
    assert min(free_running(result)) < SAME_DB


def test_progress_is_told_step_by_step_to_the_end(torch_bundle: Bundle) -> None:
    told: list[tuple[int, int]] = []
    parity(torch_bundle, scaled(0), observe=lambda done, total: told.append((done, total)))
    assert told == [(done, 15) for done in range(1, 16)]


def test_a_result_comes_back_from_json(torch_bundle: Bundle) -> None:
    result = parity(torch_bundle, pushed(1e-3))
    assert parse_model(ParityResult, result.model_dump_json(), "parity.json") == result
    assert result.definitions.keys() == {"snr_db", "psnr_db"}
    newer = {**result.model_dump(mode="json"), "schema_version": 2}
    with pytest.raises(EdgeSDError, match=r"parity\.json has schema version 2, this edge-sd reads version 1"):
        parse_model(ParityResult, json.dumps(newer), "parity.json")


def test_an_unknown_runtime(torch_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="unknown runtime 'gpu'"):
        check_parity(torch_bundle, "gpu")


def test_a_bundle_that_was_not_exported_for_it(torch_bundle: Bundle) -> None:
    with pytest.raises(EdgeSDError, match="holds no denoiser for onnx, only for torch"):
        check_parity(torch_bundle, "onnxruntime")
