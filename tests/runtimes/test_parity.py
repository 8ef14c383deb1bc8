"""Parity under planted faults: what is wrong with a runtime, where and by how much, must be what was planted."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import pywt

from edge_sd.bundle import Bundle, trace
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation.metrics import SAME_DB, band_names, snr_db
from edge_sd.files import parse_model
from edge_sd.runnable import Session
from edge_sd.runtimes import find_runtime
from edge_sd.runtimes.evidence import follow
from edge_sd.runtimes.floor import Floor, noise_floor
from edge_sd.runtimes.parity import Gate, ParityResult, check_parity, judge

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
    bundle: Bundle,
    fault: Fault,
    gate: Gate | None = None,
    floor: Floor | None = None,
    observe: Callable[[int, int], None] = lambda done, total: None,
) -> ParityResult:
    evidence = follow(bundle, Faulty(bundle, fault), observe)
    return judge(bundle, "faulty", "1.0", evidence, floor or flat(bundle, 110.0), gate or Gate(fixed_db=80.0))


def flat(bundle: Bundle, db: float) -> Floor:
    """A floor of so many decibels everywhere."""
    steps = len(bundle.plan)
    bands = dict.fromkeys(band_names(bundle.manifest.sample_shape), db)
    return Floor(precision="fp32", perturbations=("none",), steps=(db,) * steps, bands=(bands,) * steps)


def scaled(error: float) -> Fault:
    return lambda sample, prediction, row: prediction * (1 + error)


def pushed(error: float) -> Fault:
    """Add a fixed direction, `error` times as long as the prediction."""
    unit = DIRECTION / np.linalg.norm(DIRECTION)
    return lambda sample, prediction, row: prediction + error * np.linalg.norm(prediction) * unit


def at_row(row: int, fault: Fault) -> Fault:
    return lambda sample, prediction, found: fault(sample, prediction, found) if found == row else prediction


def teacher_forced(result: ParityResult) -> list[float]:
    return [step.forced.value_db for step in result.steps]


def free_running(result: ParityResult) -> list[float]:
    return [step.free_running_db for step in result.steps]


def test_the_reference_is_equal_to_itself_bit_for_bit(torch_bundle: Bundle) -> None:
    result, evidence = check_parity(torch_bundle, "torch")
    assert result.passed
    assert {*teacher_forced(result), *free_running(result), result.final.snr_db, result.final.psnr_db} == {SAME_DB}
    assert {figure.value_db for step in result.steps for figure in step.bands.values()} == {SAME_DB}
    assert result.final.ssim == 1
    assert len(evidence) == 3
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
    assert result.worst_step.row == 2
    assert result.worst_step.forced.value_db == -SAME_DB
    assert (result.final.snr_db, result.final.psnr_db, result.final.ssim) == (-SAME_DB, -SAME_DB, 0)
    assert json.loads(result.model_dump_json())["steps"][2]["forced"]["value_db"] == -SAME_DB


@pytest.mark.parametrize("row", range(5))
def test_a_fault_in_one_step_is_named_and_only_there(row: int, torch_bundle: Bundle) -> None:
    result = parity(torch_bundle, at_row(row, scaled(1e-2)))
    assert result.worst_step.row == row
    timestep = torch_bundle.plan.timestep[row]
    named = f"faulty: FAILED: step {row} (timestep {timestep:g}) at 40.0 dB (gate 80.0 dB, noise floor 110.0 dB)"
    assert parity(torch_bundle, at_row(row, scaled(1e-2)), floor=flat(torch_bundle, 110.0)).outcome == "failed"
    assert result.steps[row].forced.outcome == "failed"
    assert result.verdict == named or "band" in result.verdict
    assert [found for found in teacher_forced(result) if found != SAME_DB] == [result.worst_step.forced.value_db]


@pytest.mark.parametrize("row", range(5))
def test_running_free_a_fault_shows_from_the_next_step_on(row: int, torch_bundle: Bundle) -> None:
    """Free-running decibels are of the sample that goes into a step: untouched up to the faulty one, adrift after it."""
    result = parity(torch_bundle, at_row(row, pushed(1e-2)))
    assert free_running(result)[: row + 1] == [SAME_DB] * (row + 1)
    assert max([*free_running(result)[row + 1 :], result.final.snr_db]) < 100


def test_free_running_decibels_are_those_of_the_runtimes_own_trajectory(torch_bundle: Bundle) -> None:
    result = parity(torch_bundle, pushed(1e-2))
    own = [trace(torch_bundle.plan, Faulty(torch_bundle, pushed(1e-2)), 0, index) for index in range(3)]
    pairs = list(zip(torch_bundle.golden.trajectories, own, strict=True))
    for row in range(5):
        expected = min(snr_db(golden.samples[row], mine.samples[row]) for golden, mine in pairs)
        assert free_running(result)[row] == expected
    assert result.final.snr_db == min(snr_db(golden.final, mine.final) for golden, mine in pairs)


def test_teacher_forced_steps_are_fed_the_references_samples(torch_bundle: Bundle) -> None:
    """Even a runtime whose own trajectory is lost at once."""
    session = Faulty(torch_bundle, scaled(10))
    follow(torch_bundle, session)
    for trajectory in torch_bundle.golden.trajectories:
        for row in range(5):
            assert any(found == row and np.array_equal(sample[0], trajectory.samples[row]) for sample, found in session.seen)


def test_the_worst_trajectory_decides(torch_bundle: Bundle) -> None:
    only = torch_bundle.golden.trajectories[1].samples[3]

    def fault(sample: np.ndarray, prediction: np.ndarray, row: int) -> np.ndarray:
        return prediction * 1.01 if np.array_equal(sample[0], only) else prediction

    result = parity(torch_bundle, fault)
    assert result.worst_step.row == 3
    assert result.worst_step.forced.value_db == pytest.approx(40, abs=0.01)
    assert not result.passed


def test_a_step_at_the_gate_passes_and_one_below_does_not(torch_bundle: Bundle) -> None:
    low, fault = flat(torch_bundle, 55.0), scaled(1e-2)
    worst = parity(torch_bundle, fault).worst_step.forced.value_db
    assert parity(torch_bundle, fault, Gate(fixed_db=worst), low).passed
    above = parity(torch_bundle, fault, Gate(fixed_db=float(np.nextafter(worst, np.inf)), margin_db=10), low)
    assert above.steps[above.worst_step.row].forced.outcome == "failed"
    assert above.outcome == "failed"


def test_the_gate_lies_a_margin_below_the_floor_in_every_step_and_band(torch_bundle: Bundle) -> None:
    """A relative error of 1e-3 is 60 dB: enough for a floor of 79 dB and a margin of 20, and not for one of 81 dB."""
    fault = scaled(1e-3)
    assert parity(torch_bundle, fault, Gate(), flat(torch_bundle, 79.0)).passed
    assert parity(torch_bundle, fault, Gate(), flat(torch_bundle, 81.0)).outcome == "failed"
    assert parity(torch_bundle, fault, Gate(margin_db=22), flat(torch_bundle, 81.0)).passed
    only = flat(torch_bundle, 79.0)
    bands = [dict(band) for band in only.bands]
    bands[3]["HL1"] = 90.0
    result = parity(torch_bundle, fault, Gate(), only.model_copy(update={"bands": tuple(bands)}))
    assert result.outcome == "failed"
    assert result.decisive[0] == f"band HL1 of step 3 (timestep {torch_bundle.plan.timestep[3]:g})"


def test_what_the_floor_cannot_show_is_inconclusive(torch_bundle: Bundle) -> None:
    """A reference that is lost in its own rounding proves nothing; a gate above the floor is missed by everyone."""
    lost = parity(torch_bundle, scaled(0), Gate(), flat(torch_bundle, 30.0))
    assert (lost.outcome, lost.passed) == ("inconclusive", False)
    assert lost.verdict.startswith("faulty: INCONCLUSIVE: step 0")
    beyond = parity(torch_bundle, scaled(1e-5), Gate(fixed_db=130.0), flat(torch_bundle, 110.0))
    assert {step.forced.outcome for step in beyond.steps} == {"inconclusive"}
    worse = parity(torch_bundle, scaled(1e-4), Gate(fixed_db=130.0), flat(torch_bundle, 110.0))
    assert {step.forced.outcome for step in worse.steps} == {"failed"}


def test_an_empty_band_alone_does_not_make_it_inconclusive(torch_bundle: Bundle) -> None:
    floor = flat(torch_bundle, 99.0)
    bands = tuple({name: 5.0 if name == "HH1" else value for name, value in band.items()} for band in floor.bands)
    result = parity(torch_bundle, scaled(1e-4), Gate(), floor.model_copy(update={"bands": bands}))
    assert result.passed
    assert {step.bands["HH1"].outcome for step in result.steps} == {"inconclusive"}


def test_a_fault_in_one_subband_shows_there(torch_bundle: Bundle) -> None:
    """An error in HH1 alone, in a known ratio to what the reference has there, and nothing in the other bands."""

    def checkered(sample: np.ndarray, prediction: np.ndarray, row: int) -> np.ndarray:
        bands = pywt.wavedec2(prediction.astype(np.float64), "haar", mode="periodization", level=1, axes=(-2, -1))
        horizontal, vertical, diagonal = bands[1]
        return pywt.waverec2([bands[0], (horizontal, vertical, diagonal * 1.01)], "haar", mode="periodization", axes=(-2, -1))

    result = parity(torch_bundle, checkered, Gate(), flat(torch_bundle, 100.0))
    for step in result.steps:
        assert step.bands["HH1"].value_db == pytest.approx(40, abs=0.05)
        assert min(figure.value_db for name, figure in step.bands.items() if name != "HH1") > 110
    assert result.outcome == "failed"
    assert result.decisive[0].startswith("band HH1 of step")


def test_a_quantized_program_is_held_to_its_budget(torch_bundle: Bundle) -> None:
    evidence = follow(torch_bundle, Faulty(torch_bundle, scaled(0.1)))  # 20 dB
    floor = flat(torch_bundle, 25.0)

    def judged(gate: Gate) -> ParityResult:
        return judge(torch_bundle, "faulty", "1.0", evidence, floor, gate, quantized=True)

    assert judged(Gate(budget_db=19)).passed
    assert judged(Gate(budget_db=21)).outcome == "failed"
    assert "budget 21.0 dB" in judged(Gate(budget_db=21)).verdict
    assert all(figure.gate_db is None for step in judged(Gate()).steps for figure in step.bands.values())
    # The simulation itself is at 15 dB: that the program is at 20 of 21 does not say that it is wrong.
    noisy = judge(torch_bundle, "faulty", "1.0", evidence, flat(torch_bundle, 15.0), Gate(budget_db=21), quantized=True)
    assert noisy.outcome == "inconclusive"


def test_the_floor_is_what_rounding_does_to_the_reference(torch_bundle: Bundle) -> None:
    """float32 keeps 24 bits: a sum of products is right to some 110 to 150 dB; half precision has 11, and 50 to 80 dB."""
    told: list[tuple[int, int]] = []
    single = noise_floor(torch_bundle, "fp32", lambda done, total: told.append((done, total)))
    half = noise_floor(torch_bundle, "fp16")
    assert told == [(done, 5) for done in range(1, 6)]
    assert (len(single.steps), len(single.bands)) == (5, 5)
    assert all(105 < value < 160 for value in single.steps)
    assert all(45 < value < 90 for value in half.steps)
    assert set(half.perturbations) - set(single.perturbations) == {"float16"}
    assert single == noise_floor(torch_bundle, "fp32")


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
    counts = [done for done, _ in told]
    assert counts == sorted(counts)
    assert told[-1] == (30, 30)  # 3 trajectories of 5 steps, twice


def test_a_result_comes_back_from_json(torch_bundle: Bundle) -> None:
    result = parity(torch_bundle, pushed(1e-3))
    assert parse_model(ParityResult, result.model_dump_json(), "parity.json") == result
    assert result.definitions.keys() == {"snr_db", "psnr_db", "ssim", "bands"}
    newer = {**result.model_dump(mode="json"), "schema_version": 3}
    with pytest.raises(EdgeSDError, match=r"parity\.json has schema version 3, this edge-sd reads version 2"):
        parse_model(ParityResult, json.dumps(newer), "parity.json")


def test_an_unknown_runtime(torch_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="unknown runtime 'gpu'"):
        check_parity(torch_bundle, "gpu")


def test_a_bundle_that_was_not_exported_for_it(torch_bundle: Bundle) -> None:
    with pytest.raises(EdgeSDError, match="holds no denoiser for onnx, only for torch"):
        check_parity(torch_bundle, "onnxruntime")
