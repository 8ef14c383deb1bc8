"""Which is faster: intervals that hold what they promise, verdicts in words, and results that must not be compared."""

import numpy as np
import pytest

from edge_sd.bundle import Bundle
from edge_sd.devices import BenchResult, Job, bench
from edge_sd.devices._compare import Comparison, Side, compare, compare_results, order_of, ratio_interval
from edge_sd.devices.host import describe_host
from edge_sd.errors import EdgeSDError

QUICK = Job(runtime="executorch-runner", prove=False, least_warmup=3, most_warmup=10, iterations=20)


def comparison(speedup: float, low: float, high: float) -> Comparison:
    side = Side(bundle="x.edgesd", bundle_digest="0" * 64, runtime="r", runtime_version="1", blocks_ms=(1.0,))
    return Comparison(
        device=describe_host(), times="real", threads=1, a=side, b=side, interleaved=True, speedup=speedup, low=low, high=high
    )


@pytest.mark.parametrize(
    ("interval", "faster", "words"),
    [
        ((1.31, 1.27, 1.35), "B", "B is 1.31× faster (95 % 1.27–1.35)"),
        ((0.5, 0.4, 0.8), "A", "A is 2.00× faster (95 % 1.25–2.50)"),
        ((1.02, 0.99, 1.05), None, "cannot tell: B takes 0.980 of A's time (95 % 0.952–1.010)"),
        ((1.005, 1.004, 1.006), None, "cannot tell: B takes 0.995 of A's time (95 % 0.994–0.996)"),
    ],
)
def test_verdicts(interval: tuple[float, float, float], faster: str | None, words: str) -> None:
    found = comparison(*interval)
    assert (found.faster, found.verdict) == (faster, words)
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_blocks_alternate() -> None:
    assert order_of(4) == "ABBAABBA"
    assert order_of(3).count("A") == order_of(3).count("B") == 3


@pytest.mark.parametrize("pairs", [6, 10, 20])
def test_the_interval_holds_the_true_ratio_as_often_as_it_says(pairs: int) -> None:
    """Over 400 experiments with noise of 4 % a block, as a shared machine has."""
    random = np.random.default_rng(pairs)
    inside = 0
    for _ in range(400):
        _, low, high = ratio_interval(random.normal(np.log(1.3), 0.04 * np.sqrt(2), pairs))
        inside += low <= 1.3 <= high
    assert 0.92 <= inside / 400 <= 0.99


def test_a_thing_against_itself_is_rarely_told_apart() -> None:
    """In at most 1 of 20, with heavy tails: now and then a block meets other work on the machine."""
    random = np.random.default_rng(7)
    told = 0
    for _ in range(400):
        blocks = np.exp(random.normal(0, 0.02, (2, 10)) + (random.random((2, 10)) < 0.1) * random.exponential(0.3, (2, 10)))
        ratio, low, high = ratio_interval(np.log(blocks[0] / blocks[1]))
        told += comparison(ratio, low, high).faster is not None
    assert told <= 20


def test_equal_pairs_and_a_single_pair() -> None:
    assert ratio_interval(np.full(5, np.log(2.0))) == pytest.approx((2, 2, 2))
    ratio, low, high = ratio_interval(np.array([np.log(2.0)]))
    assert (ratio, low, high) == (pytest.approx(2), 0, np.inf)


def test_two_jobs_in_turn_on_this_machine(bundle: Bundle) -> None:
    """Which is faster, and how sure that is, the benchmark tells: a machine that is busy with other tests need not."""
    seen: list[str] = []
    same = compare("host", (bundle, QUICK), (bundle, QUICK), pairs=4, observe=lambda done, total, note: seen.append(note))
    assert (len(same.a.blocks_ms), len(same.b.blocks_ms)) == (4, 4)
    assert same.interleaved
    assert [note[-1] for note in seen[2:-1]] == list("ABBAABBA")
    assert 0.2 < same.speedup < 5
    other = compare("host", (bundle, QUICK), (bundle, QUICK.model_copy(update={"runtime": "torch"})), pairs=4)
    assert (other.a.runtime, other.b.runtime) == ("executorch-runner", "torch")
    assert other.low <= other.speedup <= other.high
    ratios = np.log(np.array(other.a.blocks_ms) / np.array(other.b.blocks_ms))
    assert other.speedup == pytest.approx(np.exp(ratios.mean()))


def test_real_times_and_imitated_ones_are_never_compared(bundle: Bundle) -> None:
    emulated = QUICK.model_copy(
        update={"runtime": "executorch-runner-aarch64", "iterations": 3, "least_warmup": 1, "most_warmup": 1}
    )
    with pytest.raises(EdgeSDError, match="are never compared"):
        compare("host", (bundle, QUICK), (bundle, emulated), pairs=1)


@pytest.fixture(scope="module")
def result(bundle: Bundle) -> BenchResult:
    return bench("host", bundle, QUICK)


def test_saved_results_are_compared_if_they_were_measured_alike(result: BenchResult) -> None:
    assert result.measurement is not None
    faster = result.measurement.model_copy(update={"samples_ms": tuple(ms / 2 for ms in result.measurement.samples_ms)})
    found = compare_results(result, result.model_copy(update={"measurement": faster}))
    assert (found.faster, found.interleaved) == ("B", False)
    assert found.speedup == pytest.approx(2)
    assert "two occasions" in found.notes[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"governor": "performance"}, "governor: unknown against performance"),
        ({"power": "battery"}, "power: unknown against battery"),
        ({"system": "Android 15"}, "system: .* against Android 15"),
        ({"processor": "Tensor G3"}, "processor: .* against Tensor G3"),
    ],
)
def test_results_of_devices_that_differ_are_refused(result: BenchResult, changes: dict[str, object], words: str) -> None:
    base = result.model_copy(update={"device": result.device.model_copy(update={"governor": "", "power": ""})})
    other = base.model_copy(update={"device": base.device.model_copy(update=changes)})
    with pytest.raises(EdgeSDError, match=f"not measured alike: {words}"):
        compare_results(base, other)
    assert any("against" in note for note in compare_results(base, other, anyway=True).notes)


def test_emulated_results_are_refused_whatever_is_asked_for(result: BenchResult) -> None:
    with pytest.raises(EdgeSDError, match="times: real against emulated"):
        compare_results(result, result.model_copy(update={"times": "emulated"}), anyway=True)
    with pytest.raises(EdgeSDError, match="without times"):
        compare_results(result, result.model_copy(update={"measurement": None, "latency": None}))
