"""What every runtime promises, whichever there are: a new one is tested by being there."""

import dataclasses
import platform

import numpy as np
import pytest

from edge_sd.bundle import Bundle, trace
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation import snr_db
from edge_sd.runnable import Availability, Session
from edge_sd.runtimes import Runtime, find_runtime, runtimes, sample_bundle
from edge_sd.runtimes.parity import check_parity

# The one runtime that exists on another system alone. Nothing else may be absent here: what does not work fails.
ELSEWHERE = set() if platform.system() == "Darwin" else {"coreml"}
HERE = {name: runtime for name, runtime in runtimes().items() if name not in ELSEWHERE}


@pytest.fixture(scope="module", params=list(HERE))
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
    (spec,) = bundle.manifest.contract().outputs
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


def test_a_session_outlives_a_change_of_threads(runtime: Runtime, bundle: Bundle) -> None:
    """A process may have one pool for all of its sessions, and it is another afterwards."""
    arguments = bundle.golden.trajectories[1].samples[:1], bundle.plan.features[:1]
    one = runtime.load(bundle, threads=1)
    first = one(*arguments).copy()
    two = runtime.load(bundle, threads=2)
    for session in (one, two, one, runtime.load(bundle, threads=1), two):
        assert snr_db(first, session(*arguments)) > 120


def test_a_sample_depends_on_the_seed_and_its_index_alone(session: Session, bundle: Bundle) -> None:
    samples = sample_bundle(session, bundle.plan, seed=11, count=2)
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples[1], trace(bundle.plan, session, seed=11, index=1).final)
    assert not np.array_equal(samples[0], samples[1])


def test_it_makes_the_rows_of_time_features_that_the_reference_made(runtime: Runtime, bundle: Bundle) -> None:
    """The program `temporal`, from a step of the plan to a row of it."""
    temporal = runtime.load(bundle, program="temporal")
    (spec,) = bundle.manifest.contract("temporal").outputs
    for row, timestep in enumerate(bundle.plan.timestep):
        features = temporal(np.array([timestep], dtype=np.float32))
        assert (features.shape, features.dtype.name) == (spec.shape, spec.dtype)
        assert snr_db(bundle.plan.features[row : row + 1], features) > 80


def test_it_decodes_what_the_reference_decoded(runtime: Runtime, bundle: Bundle) -> None:
    """From an array with an added dimension too, whose stride NumPy leaves at 0."""
    decoder = runtime.load(bundle, program="decoder")
    assert decoder.sample_shape == bundle.manifest.sample_shape
    images = [decoder(trajectory.final[None]).copy() for trajectory in bundle.golden.trajectories]
    for trajectory, image in zip(bundle.golden.trajectories, images, strict=True):
        assert trajectory.image is not None
        assert image.shape == bundle.manifest.contract("decoder").outputs[0].shape
        assert snr_db(trajectory.image, image[0]) > 80
    assert snr_db(images[0], images[1]) < 40


def test_its_programs_do_not_disturb_one_another(runtime: Runtime, session: Session, bundle: Bundle) -> None:
    """They may lie in one file, and share its memory."""
    arguments = bundle.golden.trajectories[1].samples[:1], bundle.plan.features[:1]
    before = session(*arguments)
    kept = before.copy()
    runtime.load(bundle, program="decoder")(bundle.golden.trajectories[0].final[None])
    runtime.load(bundle, program="temporal")(bundle.plan.timestep[1:2].astype(np.float32))
    np.testing.assert_array_equal(before, kept)
    np.testing.assert_array_equal(session(*arguments), kept)


def test_parity_finds_every_program_as_good_as_the_reference(runtime: Runtime, bundle: Bundle) -> None:
    result, _ = check_parity(bundle, runtime.name)
    assert result.passed, result.verdict
    assert result.temporal is not None
    assert result.decoder is not None
    assert min(result.final.snr_db, result.temporal.value_db, result.decoder.value_db) > 80
    assert result.lowest_free_db > 80


@pytest.mark.parametrize("name", [name for name, runtime in HERE.items() if runtime.target != "torch"])
def test_a_program_that_does_not_keep_the_contract_is_refused(name: str, bundle: Bundle) -> None:
    """Found when it is loaded and not in a picture."""
    denoiser, *others = bundle.manifest.contracts
    (prediction,) = denoiser.outputs
    wider = denoiser.model_copy(update={"outputs": (prediction.model_copy(update={"shape": (1, 3, 8, 9)}),)})
    foreign = dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"contracts": (wider, *others)}))
    with pytest.raises(EdgeSDError, match="contract") as caught:
        runtimes()[name].load(foreign)
    assert caught.value.hint


def test_a_bundle_without_its_target_names_those_that_are_there(runtime: Runtime, bundle: Bundle) -> None:
    others = tuple(program for program in bundle.manifest.programs if program.target != runtime.target)
    without = dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"programs": others}))
    names = ", ".join(sorted({program.target for program in others}))
    for program in ("denoiser", "temporal", "decoder"):
        with pytest.raises(EdgeSDError, match=rf"holds no {program} for {runtime.target}, only for {names}"):
            runtime.load(without, program=program)


def test_an_unknown_runtime_is_named_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown runtime 'gpu' .try: one of .*onnxruntime, .*torch"):
        find_runtime("gpu")
