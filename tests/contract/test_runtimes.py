"""What every runtime promises, whichever there are: a new one is tested by being there."""

import dataclasses

import numpy as np
import pytest

from edge_sd.bundle import Bundle, trace
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation import snr_db
from edge_sd.runnable import Availability, Session
from edge_sd.runtimes import Runtime, find_runtime, runtimes, sample_bundle


@pytest.fixture(scope="module", params=list(runtimes()))
def runtime(request: pytest.FixtureRequest) -> Runtime:
    """Each runtime: one that does not work here fails, it is not passed over."""
    found = runtimes()[request.param]
    assert found.available().ok, found.available()
    return found


@pytest.fixture(scope="module")
def session(runtime: Runtime, bundle: Bundle) -> Session:
    return runtime.load(bundle)


@pytest.mark.parametrize("name", list(runtimes()))
def test_it_says_what_it_is_and_whether_it_works_here(name: str) -> None:
    found = runtimes()[name]
    assert (found.name, bool(found.about), bool(found.target)) == (name, True, True)
    available = found.available()
    assert isinstance(available, Availability)
    assert available.detail
    assert available.ok or available.remedy


def test_it_keeps_the_contract(session: Session, bundle: Bundle) -> None:
    (spec,) = bundle.manifest.contract.outputs
    assert session.sample_shape == bundle.manifest.model.sample_shape
    prediction = session(bundle.golden.trajectories[0].samples[:1], bundle.plan.features[:1])
    assert (prediction.shape, prediction.dtype.name) == (spec.shape, spec.dtype)
    assert np.isfinite(prediction).all()


def test_it_predicts_what_the_reference_predicted_at_every_step(session: Session, bundle: Bundle) -> None:
    for trajectory in bundle.golden.trajectories:
        for row in range(len(bundle.plan)):
            prediction = session(trajectory.samples[row : row + 1], bundle.plan.features[row : row + 1])
            assert snr_db(trajectory.predictions[row : row + 1], prediction) > 80


def test_it_says_the_same_again(session: Session, runtime: Runtime, bundle: Bundle) -> None:
    arguments = bundle.golden.trajectories[1].samples[2:3], bundle.plan.features[2:3]
    first = session(*arguments).copy()
    session(bundle.golden.trajectories[0].samples[:1], bundle.plan.features[:1])
    np.testing.assert_array_equal(session(*arguments), first)
    np.testing.assert_array_equal(runtime.load(bundle)(*arguments), first)


def test_an_answer_stays_what_it_was_after_the_next_call(session: Session, bundle: Bundle) -> None:
    """The loop keeps predictions: a runtime may not hand out a buffer that it writes to again."""
    trajectory, features = bundle.golden.trajectories[0], bundle.plan.features
    first = session(trajectory.samples[:1], features[:1])
    kept = first.copy()
    session(trajectory.samples[1:2], features[1:2])
    np.testing.assert_array_equal(first, kept)


def test_it_leaves_its_inputs_alone(session: Session, bundle: Bundle) -> None:
    sample, features = bundle.golden.trajectories[0].samples[:1].copy(), bundle.plan.features[:1].copy()
    before = sample.copy(), features.copy()
    session(sample, features)
    np.testing.assert_array_equal(sample, before[0])
    np.testing.assert_array_equal(features, before[1])


def test_it_takes_one_thread(runtime: Runtime, bundle: Bundle) -> None:
    trajectory = bundle.golden.trajectories[0]
    prediction = runtime.load(bundle, threads=1)(trajectory.samples[:1], bundle.plan.features[:1])
    assert snr_db(trajectory.predictions[:1], prediction) > 80


def test_a_sample_depends_on_the_seed_and_its_index_alone(session: Session, bundle: Bundle) -> None:
    samples = sample_bundle(session, bundle.plan, seed=11, count=2)
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples[1], trace(bundle.plan, session, seed=11, index=1).final)
    assert not np.array_equal(samples[0], samples[1])


def test_a_bundle_without_its_target_names_those_that_are_there(runtime: Runtime, bundle: Bundle) -> None:
    others = tuple(program for program in bundle.manifest.programs if program.target != runtime.target)
    without = dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"programs": others}))
    names = ", ".join(sorted({program.target for program in others}))
    with pytest.raises(EdgeSDError, match=rf"holds no denoiser for {runtime.target}, only for {names}"):
        runtime.load(without)


def test_an_unknown_runtime_is_named_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown runtime 'gpu' .try: one of .*onnxruntime, .*torch"):
        find_runtime("gpu")
