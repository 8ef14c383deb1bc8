"""Real images analysed once: equal n, which figures come out and what stands beside them, and what is too little."""

import numpy as np
import pytest
import torch

from edge_sd.data import ImageData
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation.distances import Gaussian, frechet_distance, kernel_distance
from edge_sd.evaluation.features import Features, extract, wrap_features
from edge_sd.evaluation.record import Evaluation, Origin
from edge_sd.evaluation.reference import EvaluationSettings, Reference, check_enough, choose, rgb_pixels

N = 40
ORIGIN = Origin(kind="checkpoint", name="student.safetensors", digest="a" * 64, runtime="torch", solver="dpmpp", nfe=20, seed=3)
SETTINGS = EvaluationSettings(kid_subsets=5, kid_subset_size=20)


def images(seed: int, n: int = N, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, size, size), dtype=np.uint8)


@pytest.fixture(scope="module")
def features() -> Features:
    """16 random projections of an image."""
    weights = torch.randn(3 * 16 * 16, 16, generator=torch.Generator().manual_seed(0)) / 28

    return wrap_features(lambda x: torch.tanh(x.flatten(1) @ weights), "Random", "f" * 64)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData(images(0, 100), "d" * 64, "100 images of somewhere")


@pytest.fixture(scope="module")
def reference(data: ImageData, features: Features) -> Reference:
    pixels, real = choose(data, N, split="test", seed=1)
    return Reference.of(pixels, features, SETTINGS, real=real)


def test_every_figure_says_its_n_its_split_its_features_and_its_definition(reference: Reference, features: Features) -> None:
    figures, _ = reference.measure(images(1))
    named = {figure.name: figure for figure in figures}
    by_features = {"Random-KID", "Random-FD", "Random precision", "Random recall"}
    bands = {f"wavelet SWD {band}" for band in ("LH1", "HL1", "HH1", "LH2", "HL2", "HH2", "LL2")}
    assert named.keys() == by_features | bands | {"wavelet SWD, mean", "spectrum gap dB"}
    for name, figure in named.items():
        assert (figure.n, figure.split) == (N, "test")
        assert figure.definition
        assert (figure.features is not None) == (name in by_features)
        if figure.features is not None:
            assert (figure.features.name, figure.features.digest) == (features.name, features.digest)
    assert named["wavelet SWD, mean"].value == pytest.approx(np.mean([named[band].value for band in bands]))


def test_the_figures_are_the_functions_of_the_features(reference: Reference, features: Features) -> None:
    samples = images(1)
    found = {figure.name: figure for figure in reference.measure(samples)[0]}
    real, generated = reference.rows, extract(features, samples)
    assert real is not None
    kernel = kernel_distance(real, generated, subsets=5, subset_size=20)
    assert found["Random-KID"].value == kernel.value
    assert found["Random-KID"].standard_error == kernel.standard_error
    assert found["Random-KID"].spread == kernel.spread
    assert found["Random-FD"].value == frechet_distance(Gaussian.of(real), Gaussian.of(generated))


def test_by_inceptions_features_they_are_called_fid_and_kid(features: Features) -> None:
    published = Features("Inception", features.digest, features.compute)
    figures, _ = Reference.of(images(0), published, SETTINGS).measure(images(1))
    assert [figure.name for figure in figures[:4]] == ["KID", "FID", "precision", "recall"]


def test_of_the_real_images_themselves_every_distance_is_nothing(data: ImageData, features: Features) -> None:
    pixels, _ = choose(data, N)
    figures, spectra = Reference.of(pixels, features, EvaluationSettings(kid_subset_size=N)).measure(pixels)
    for figure in figures:
        if figure.best == 1:
            assert figure.value == 1
        elif figure.name == "Random-KID":
            assert figure.value < 0  # the unbiased estimate leaves out pairs of equals that the mixed term counts
        else:
            assert figure.value == pytest.approx(0, abs=1e-9), figure.name
    assert set(spectra.gap_db) == {0.0}


def test_without_features_the_figures_of_pixels_are_left(data: ImageData) -> None:
    figures, _ = Reference.of(choose(data, 3)[0]).measure(images(1, 3))
    assert all(figure.features is None for figure in figures)
    assert len(figures) == 9


def test_the_record_comes_back_from_its_json(reference: Reference) -> None:
    result = reference.evaluate(images(1), ORIGIN, seconds={"sampling": 2.0})
    assert Evaluation.model_validate_json(result.model_dump_json()) == result
    assert result.origin == ORIGIN
    assert (result.n, result.size, result.real.available, result.real.digest) == (N, 16, 100, "d" * 64)
    assert result.seconds.keys() == {"sampling", "measuring"}
    assert result.figure("Random-KID").n == N
    assert len(result.spectra.gap_db) == len(result.spectra.frequencies) == 8
    with pytest.raises(KeyError):
        result.figure("FID")


def test_the_same_images_and_seed_give_the_same_figures(data: ImageData, features: Features, reference: Reference) -> None:
    pixels, real = choose(data, N, split="test", seed=1)
    again = Reference.of(pixels, features, SETTINGS, real=real, batch_size=64)
    assert again.measure(images(1)) == reference.measure(images(1))


# n


@pytest.mark.parametrize("n", [N - 1, N + 1, 2 * N])
def test_another_number_of_samples_than_of_real_images_is_an_error(reference: Reference, n: int) -> None:
    with pytest.raises(UsageError, match=f"{n} samples against {N} real images"):
        reference.measure(images(1, n))


def test_images_are_chosen_without_replacement_by_the_seed(data: ImageData) -> None:
    one, real = choose(data, N, split="test", seed=1)
    assert len(np.unique(one.reshape(N, -1), axis=0)) == N
    assert (real.about, real.digest, real.split, real.available, real.seed) == (data.about, data.digest, "test", 100, 1)
    np.testing.assert_array_equal(one, choose(data, N, seed=1)[0])
    assert not np.array_equal(one, choose(data, N, seed=2)[0])
    np.testing.assert_array_equal(choose(data)[0], data.pixels)


def test_more_images_than_the_data_holds_are_an_error(data: ImageData) -> None:
    with pytest.raises(UsageError, match="holds 100 images, not 101") as raised:
        choose(data, 101)
    assert "-n 100" in raised.value.hint


@pytest.mark.parametrize(
    ("n", "settings", "said"),
    [
        (1, {}, "too few for any figure"),
        (999, {}, "999 images are too few for Random-KID over subsets of 1000"),
        (3, {"kid_subset_size": 3}, "too few for precision and recall over 3 neighbours"),
    ],
)
def test_too_few_images_for_a_figure_are_an_error_before_anything_runs(
    features: Features, n: int, settings: dict[str, int], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        check_enough(n, features, EvaluationSettings(**settings))
    assert "-n" in raised.value.hint


def test_fewer_images_than_features_are_noted(features: Features) -> None:
    few, many = (
        Reference.of(images(0, n), features, EvaluationSettings(kid_subset_size=10)).measure(images(1, n))[0][1] for n in (12, 20)
    )
    assert "n 12 < 16 features" in few.note
    assert many.note == ""


def test_other_sizes_and_kinds_of_pixels_are_refused(reference: Reference) -> None:
    with pytest.raises(EdgeSDError, match="of 32 px against real images of 16 px"):
        reference.measure(images(1, size=32))
    for bad in (images(1)[:, :1], images(1).astype(np.float32), images(1)[..., :8], images(1)[0]):
        with pytest.raises(EdgeSDError, match="square"):
            reference.measure(bad)


# Samples to pixels


def test_samples_are_clipped_and_rounded_as_files_would_be() -> None:
    samples = np.array([-2, -1, -0.5, 0, 1, 3], np.float32).reshape(6, 1, 1, 1).repeat(3, 1)
    assert rgb_pixels(samples)[:, 0, 0, 0].tolist() == [0, 0, 64, 128, 255, 255]
    assert rgb_pixels(samples[:, :1]).shape == (6, 3, 1, 1)


@pytest.mark.parametrize(
    "samples", [np.zeros((2, 4, 8, 8)), np.zeros((2, 2, 8, 8)), np.full((2, 3, 8, 8), np.nan), np.zeros((3, 8, 8))]
)
def test_latents_and_broken_samples_are_refused(samples: np.ndarray) -> None:
    with pytest.raises(EdgeSDError):
        rgb_pixels(samples)
