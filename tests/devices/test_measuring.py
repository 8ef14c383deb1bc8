"""How times are taken: warm-up, steady state, the sustained curve; and what is made of raw samples."""

import itertools
import time

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edge_sd.devices import Latency, Measurement, Moment
from edge_sd.devices import _measuring as measuring
from edge_sd.devices._job import resampled_medians, sustained_words
from edge_sd.devices._measuring import Calls, Limits, stable

QUICK = Limits(least_warmup=3, most_warmup=30, iterations=8, images=2, ceiling=False, minutes=0.0, most_seconds=10.0)


def calls_of(times: list[float], seen: list[int]) -> Calls:
    """Calls of so many seconds each, the last one again and again; `seen` keeps their rows."""
    queue = itertools.chain(times, itertools.repeat(times[-1]))

    def step(row: int) -> None:
        seen.append(row)
        time.sleep(next(queue))

    return Calls(step, lambda: time.sleep(0.004), lambda: time.sleep(0.006))


def test_warm_up_goes_on_until_two_windows_agree() -> None:
    seen: list[int] = []
    found = measuring.measure(calls_of([0.05, *[0.02] * 3, *[0.01] * 3, 0.005], seen), 4, QUICK, 1, lambda done, total: None)
    assert found["first_ms"] > 49
    assert found["stable"]
    assert 9 <= len(found["warmup_ms"]) <= 30
    assert len(found["samples_ms"]) == 8
    assert np.median(found["samples_ms"]) == pytest.approx(5, abs=2)
    assert seen == [number % 4 for number in range(len(seen))]  # the golden's rows in turn
    assert (len(found["decoder_ms"]), len(found["image_ms"])) == (2, 2)
    assert min(found["image_ms"]) > 5.9


def test_a_warm_up_that_never_settles_is_said_to_be_one() -> None:
    restless = [0.001 * 1.7**number for number in range(9)]
    limits = QUICK._replace(most_warmup=8, iterations=3)
    found = measuring.measure(calls_of(restless, []), 2, limits, 1, lambda done, total: None)
    assert not found["stable"]
    assert len(found["warmup_ms"]) == 8


def test_slow_calls_are_cut_short_but_never_below_three() -> None:
    limits = QUICK._replace(least_warmup=1, iterations=100, images=0, most_seconds=0.05)
    found = measuring.measure(calls_of([0.03], []), 2, limits, 1, lambda done, total: None)
    assert 3 <= len(found["samples_ms"]) < 10


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=60), st.integers(1, 10))
def test_stable_is_what_it_says(times: list[float], window: int) -> None:
    expected = False
    if len(times) >= 2 * window:
        last, before = np.median(times[-window:]), np.median(times[len(times) - 2 * window : len(times) - window])
        expected = bool(abs(last - before) <= 0.05 * last)
    assert stable(times, window) == expected


def test_the_sustained_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_WINDOW_SECONDS", 0.05)
    limits = QUICK._replace(iterations=3, minutes=0.3 / 60)
    heard: list[tuple[int, int]] = []
    found = measuring.measure(calls_of([0.002], []), 2, limits, 1, lambda *pair: heard.append(pair))
    curve = [Moment.model_validate(moment) for moment in found["sustained"]]
    assert 4 <= len(curve) <= 7
    assert [moment.seconds for moment in curve] == sorted(moment.seconds for moment in curve)
    assert sum(moment.calls for moment in curve) > 50
    assert all(2 <= moment.p50_ms <= moment.p90_ms for moment in curve)


def moments(times: list[float], celsius: list[float], mhz: list[float]) -> tuple[Moment, ...]:
    return tuple(
        Moment(seconds=30 * (number + 1), calls=9, p50_ms=ms, p90_ms=ms, celsius={"cpu": heat, "skin": 30}, mhz=(300, clock))
        for number, (ms, heat, clock) in enumerate(zip(times, celsius, mhz, strict=True))
    )


def test_throttling_is_put_into_words() -> None:
    curve = moments([10, 10, 10.5, 13, 14, 15, 15, 15], [40, 50, 60, 70, 70, 71, 71, 72], [2400] * 3 + [1800] * 5)
    assert sustained_words(curve) == (
        "10.00 ms at first, 15.00 ms after 4.0 minutes (+50%); cpu 40 → 72 °C; fastest clock 2400 → 1800 MHz; "
        "throttled from 120 s on"
    )


def test_a_cool_device_is_said_to_be_one() -> None:
    curve = moments([10, 11.5, 10, 10], [40] * 4, [2400] * 4)
    assert sustained_words(curve).endswith("no throttling seen")


def test_percentiles_are_numpys_and_the_interval_holds_the_median() -> None:
    samples = list(np.random.default_rng(0).lognormal(1, 0.3, 200))
    latency = Latency.of(samples)
    found = (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.mean_ms)
    np.testing.assert_allclose(found, (*np.percentile(samples, (50, 90, 99)), np.mean(samples)), rtol=1e-12)
    assert latency.low_ms <= latency.p50_ms <= latency.high_ms
    assert latency.high_ms - latency.low_ms < 0.5


def test_the_medians_interval_covers_the_true_median() -> None:
    """In some 95 of 100 experiments; blocks of ten of independent samples are a little less sure than that."""
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        low, high = np.percentile(resampled_medians(random.lognormal(0, 0.2, 100)), (2.5, 97.5))
        inside += bool(low <= 1 <= high)
    assert 170 <= inside <= 200


def test_neighbours_that_move_together_widen_the_interval() -> None:
    random = np.random.default_rng(2)
    alone = random.normal(10, 1, 400)
    together = np.repeat(random.normal(10, 1, 20), 20) + random.normal(0, 0.01, 400)

    def width(samples: np.ndarray) -> float:
        low, high = np.percentile(resampled_medians(samples), (2.5, 97.5))
        return float(high - low)

    assert width(together) > 2 * width(alone)


def test_memory_is_this_processs() -> None:
    resident = measuring.memory("VmRSS")
    assert resident == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
    assert measuring.memory("VmHWM") >= resident * 0.9  # type: ignore[operator]
    assert measuring.memory("VmNothing") is None


def test_the_ceiling_is_of_this_machine() -> None:
    gflops, how = measuring.ceiling(1)
    assert 0.5 < gflops < 10_000
    assert "768" in how


@pytest.mark.parametrize("wrong", [{"samples_ms": ()}, {"samples_ms": (float("nan"),)}, {"samples_ms": (-1.0,)}, {"load_ms": -1}])
def test_a_measurement_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    whole = {"runtime_version": "x", "load_ms": 1, "first_ms": 1, "warmup_ms": (), "stable": True, "samples_ms": (1.0,)}
    assert Measurement.model_validate(whole).samples_ms == (1.0,)
    with pytest.raises(ValidationError):
        Measurement.model_validate({**whole, **wrong})
