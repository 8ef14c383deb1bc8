"""Feature extractors: how a callable is found, what it is given, what it may return, and what identifies it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation.features import Features, extract, load_features, wrap_features

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8), dtype=np.uint8)

SOURCE = """
import torch

def pooled(images):
    return images.mean((2, 3))

def factory():
    return pooled

def defaulted(images=None):
    return pooled

class Network(torch.nn.Module):
    size = 16

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(3, 4, 3)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, images):
        assert images.shape[-1] == 16
        return self.drop(self.layer(images)).mean((2, 3))

class Plain:
    def __init__(self):
        self.weights = {"w": torch.full((3,), 2.0)}
        self.table = [1, 2]

    def __call__(self, images):
        return images.mean((2, 3)) * self.weights["w"]

class Odd:
    size = "large"

    def __call__(self, images):
        return images

class Broken:
    def __init__(self):
        raise OSError("no weights here")

class Holder:
    nested = pooled

def nothing():
    return 3

number = 3
"""

Write = Callable[..., Path]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """(source) → write package/extractor.py into the current directory."""
    monkeypatch.chdir(tmp_path)

    def write(source: str = SOURCE) -> Path:
        for name in [name for name in sys.modules if name.partition(".")[0] == "measured"]:
            del sys.modules[name]
        (tmp_path / "measured").mkdir(exist_ok=True)
        (tmp_path / "measured" / "__init__.py").touch()
        file = tmp_path / "measured" / "extractor.py"
        file.write_text(source)
        return file

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file that changes within a second is read again
    yield write
    write()


# Finding it


@pytest.mark.parametrize(
    ("attribute", "name", "width"),
    [("pooled", "pooled", 3), ("factory", "pooled", 3), ("defaulted", "pooled", 3), ("Network", "Network", 4),
     ("Plain", "Plain", 3), ("Holder.nested", "pooled", 3)],
)  # fmt: skip
def test_a_function_a_factory_and_a_class_are_found_in_the_current_directory(
    module: Write, attribute: str, name: str, width: int
) -> None:
    module()
    before = list(sys.path)
    features = load_features(f"measured.extractor:{attribute}")
    assert sys.path == before
    assert features.name == name
    assert (features.kernel_name, features.frechet_name) == (f"{name}-KID", f"{name}-FD")
    rows = extract(features, PIXELS)
    assert rows.shape == (10, width)
    assert rows.dtype == np.float32


def test_its_name_can_be_given() -> None:
    assert load_features("torch:flatten", name="Flat").kernel_name == "Flat-KID"


def test_only_inception_may_be_called_fid() -> None:
    given = Features("Inception", "", lambda x: x)
    assert (given.kernel_name, given.frechet_name) == ("KID", "FID")
    assert wrap_features(torch.flatten, "anything", "").frechet_name == "anything-FD"


@pytest.mark.parametrize("name", ["Inception", "inception", "FID", "KID", ""])
def test_no_other_features_can_be_given_that_name(name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        load_features("torch:flatten", name=name)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("extractor", "name no callable"), (":pooled", "name no callable"), ("measured.extractor:", "name no callable"),
        ("nowhere:pooled", "no module 'nowhere'"), ("measured.nowhere:pooled", "no module 'measured.nowhere'"),
        ("measured.extractor:missing", "has no 'missing'"), ("measured.extractor:number", "is a int"),
        ("measured.extractor:nothing", "returns a int"), ("measured.extractor:Broken", "no weights here"),
        ("measured.extractor:Odd", "size 'large'"),
    ],
)  # fmt: skip
def test_what_cannot_be_found_or_called_is_an_error(module: Write, spec: str, said: str) -> None:
    module()
    with pytest.raises(EdgeSDError, match=said) as raised:
        load_features(spec)
    assert raised.value.hint


@pytest.mark.parametrize("source", ["import nowhere_at_all", "1 / 0", "def broken(:"])
def test_a_module_that_fails_says_why(module: Write, source: str) -> None:
    module(source)
    with pytest.raises(EdgeSDError, match=r"importing measured\.extractor fails: (Module|Zero|Syntax)"):
        load_features("measured.extractor:pooled")


def test_inception_takes_weights_alone_and_others_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="do not belong"):
        load_features("torch:flatten", inception_weights=tmp_path)
    for given in ({"name": "mine"}, {"size": 299}):
        with pytest.raises(UsageError, match="fixed"):
            load_features("inception", **given)


# What it is given


def test_images_are_in_minus_one_to_one_and_keep_their_size() -> None:
    seen: list[torch.Tensor] = []

    def watch(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return images.flatten(1)

    pixels = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1).repeat(3, 1).repeat(8, 2).repeat(8, 3)
    extract(wrap_features(watch, "watch", ""), pixels, batch_size=2)
    assert [tuple(images.shape) for images in seen] == [(2, 3, 8, 8), (1, 3, 8, 8)]
    assert seen[0].dtype == torch.float32
    np.testing.assert_allclose(
        [float(seen[0][0].mean()), float(seen[0][1].mean()), float(seen[1].mean())], [-1, -0.6, 1], atol=1e-6
    )


@pytest.mark.parametrize("size", [4, 8, 20])
def test_images_are_resized_without_aliases(size: int) -> None:
    """A checkerboard shrunk is grey, and not one of its colours."""
    seen: list[torch.Tensor] = []

    def watch(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return images.flatten(1)

    board = (255 * (np.indices((16, 16)).sum(0) % 2)).astype(np.uint8)[None, None].repeat(3, 1)
    extract(wrap_features(watch, "watch", "", size), board)
    assert seen[0].shape == (1, 3, size, size)
    assert float(seen[0].abs().max()) <= 1
    if size == 4:
        assert float(seen[0].abs().max()) < 0.3


def test_batches_do_not_change_the_features(module: Write) -> None:
    module()
    features = load_features("measured.extractor:Network")  # with a dropout that evaluation mode turns off
    np.testing.assert_allclose(extract(features, PIXELS, batch_size=3), extract(features, PIXELS), atol=1e-6)


def test_progress_counts_images() -> None:
    seen: list[tuple[int, int]] = []
    flat = wrap_features(lambda x: x.flatten(1), "flat", "")
    extract(flat, PIXELS, batch_size=4, observe=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]


# What it may return


@pytest.mark.parametrize(
    ("extractor", "said"),
    [
        (lambda x: x, r"\(10, 3, 8, 8\), not a floating tensor"),
        (lambda x: x.flatten(1)[:5], r"\(5, 192\), not a floating tensor"),
        (lambda x: x.flatten(1).long(), "int64"),
        (lambda x: x.flatten(1).numpy(), "ndarray"),
        (lambda x: [x], "list"),
        (lambda x: x.flatten(1) / 0, "image 0 hold a NaN or an infinity"),
        (lambda x: x @ torch.zeros(5, 5), "fail on images"),
        (lambda x: {}["missing"], "fail on images"),
    ],
)
def test_anything_but_one_finite_row_an_image_is_an_error(extractor: Callable[..., torch.Tensor], said: str) -> None:
    with pytest.raises(EdgeSDError, match=said):
        extract(wrap_features(extractor, "odd", ""), PIXELS)


def test_the_image_whose_features_are_not_finite_is_named() -> None:
    def late(images: torch.Tensor) -> torch.Tensor:
        rows = images.flatten(1).clone()
        rows[-1, 3] = float("nan")
        return rows

    with pytest.raises(EdgeSDError, match="of image 3 "):
        extract(wrap_features(late, "late", ""), PIXELS, batch_size=4)


def test_a_width_that_changes_is_an_error() -> None:
    with pytest.raises(EdgeSDError, match="4 wide and then 2"):
        extract(wrap_features(lambda x: torch.zeros(len(x), len(x)), "wide", ""), PIXELS, batch_size=4)


# What identifies it


def test_the_digest_is_of_the_source_and_of_the_weights(module: Write) -> None:
    module()
    one, again = (load_features("measured.extractor:Network").digest for _ in range(2))
    assert one == again
    assert len(one) == 64
    module(SOURCE + "\n# changed\n")
    assert load_features("measured.extractor:Network").digest != one
    module(SOURCE.replace("manual_seed(0)", "manual_seed( 0)"))
    same_weights = load_features("measured.extractor:Network").digest
    module(SOURCE.replace("manual_seed(0)", "manual_seed( 1)"))
    assert len({one, same_weights, load_features("measured.extractor:Network").digest}) == 3


def test_weights_count_also_where_torch_does_not_know_of_them(module: Write, tmp_path: Path) -> None:
    """As in an extractor that loads a file and keeps plain tensors, or arrays: the source is the same."""
    source = """
import numpy as np
import torch
class Loaded(torch.nn.Module):
    def __init__(self):
        super().__init__()
        values = np.loadtxt("weights.txt", ndmin=1)
        tensor = torch.from_numpy(values)
        self.weights = {"dict": {"a": tensor}, "tensor": tensor, "array": values}[KIND]
    def forward(self, images):
        return images.flatten(1)
"""
    for kind in ("dict", "tensor", "array"):
        found = []
        for value in ("1", "2"):
            (tmp_path / "weights.txt").write_text(value)
            module(f"KIND = {kind!r}\n{source}")
            found.append(load_features("measured.extractor:Loaded").digest)
        assert found[0] != found[1], kind
