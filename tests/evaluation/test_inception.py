"""Inception for FID and KID: features of known weights as torch-fidelity gives them, and what is said of other files.

There is no network in a test, so the published weights are not here: the network is tested with weights made by a formula, in
the published file's format. The expected numbers were computed once by torch-fidelity 0.4.0's FeatureExtractorInceptionV3 with
the same weights and images; there they agreed to the bit.
"""

from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edge_sd.errors import EdgeSDError
from edge_sd.evaluation import inception
from edge_sd.evaluation.features import extract, load_features
from edge_sd.evaluation.inception import load_inception

# Kernel of each layer: (out, in, height, width), in the order of the network.
A = {
    "branch1x1": (64, 0, 1, 1), "branch5x5_1": (48, 0, 1, 1), "branch5x5_2": (64, 48, 5, 5),
    "branch3x3dbl_1": (64, 0, 1, 1), "branch3x3dbl_2": (96, 64, 3, 3), "branch3x3dbl_3": (96, 96, 3, 3),
}  # fmt: skip
E = {
    "branch1x1": (320, 0, 1, 1), "branch3x3_1": (384, 0, 1, 1), "branch3x3_2a": (384, 384, 1, 3),
    "branch3x3_2b": (384, 384, 3, 1), "branch3x3dbl_1": (448, 0, 1, 1), "branch3x3dbl_2": (384, 448, 3, 3),
    "branch3x3dbl_3a": (384, 384, 1, 3), "branch3x3dbl_3b": (384, 384, 3, 1), "branch_pool": (192, 0, 1, 1),
}  # fmt: skip


def seven(c: int) -> dict[str, tuple[int, int, int, int]]:
    """A block of Mixed_6."""
    return {
        "branch1x1": (192, 768, 1, 1), "branch7x7_1": (c, 768, 1, 1), "branch7x7_2": (c, c, 1, 7),
        "branch7x7_3": (192, c, 7, 1), "branch7x7dbl_1": (c, 768, 1, 1), "branch7x7dbl_2": (c, c, 7, 1),
        "branch7x7dbl_3": (c, c, 1, 7), "branch7x7dbl_4": (c, c, 7, 1), "branch7x7dbl_5": (192, c, 1, 7),
        "branch_pool": (192, 768, 1, 1),
    }  # fmt: skip


def kernels() -> dict[str, tuple[int, int, int, int]]:
    """Every convolution by name."""
    found = {
        "Conv2d_1a_3x3": (32, 3, 3, 3), "Conv2d_2a_3x3": (32, 32, 3, 3), "Conv2d_2b_3x3": (64, 32, 3, 3),
        "Conv2d_3b_1x1": (80, 64, 1, 1), "Conv2d_4a_3x3": (192, 80, 3, 3),
        "Mixed_6a.branch3x3": (384, 288, 3, 3), "Mixed_6a.branch3x3dbl_1": (64, 288, 1, 1),
        "Mixed_6a.branch3x3dbl_2": (96, 64, 3, 3), "Mixed_6a.branch3x3dbl_3": (96, 96, 3, 3),
        "Mixed_7a.branch3x3_1": (192, 768, 1, 1), "Mixed_7a.branch3x3_2": (320, 192, 3, 3),
        "Mixed_7a.branch7x7x3_1": (192, 768, 1, 1), "Mixed_7a.branch7x7x3_2": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_3": (192, 192, 7, 1), "Mixed_7a.branch7x7x3_4": (192, 192, 3, 3),
    }  # fmt: skip
    blocks = [(f"Mixed_5{name}", A | {"branch_pool": (pool, 0, 1, 1)}, width) for name, pool, width in
              (("b", 32, 192), ("c", 64, 256), ("d", 64, 288))]  # fmt: skip
    blocks += [(f"Mixed_6{name}", seven(c), 768) for name, c in (("b", 128), ("c", 160), ("d", 160), ("e", 192))]
    blocks += [("Mixed_7b", E, 1280), ("Mixed_7c", E, 2048)]
    for block, layers, width in blocks:
        found |= {f"{block}.{layer}": (shape[0], shape[1] or width, *shape[2:]) for layer, shape in layers.items()}
    return found


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Weights by a formula: each tensor's values depend on its name alone."""
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, kernel in kernels().items():
        shapes[f"{name}.conv.weight"] = kernel
        shapes |= {f"{name}.bn.{part}": kernel[:1] for part in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{name}.bn.num_batches_tracked"] = ()
    found = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([ord(letter) for letter in name])
        if name.endswith("num_batches_tracked"):
            values = np.zeros((), np.int64)
        elif name.endswith(("running_var", "bn.weight")):
            values = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        elif len(shape) > 1:
            values = (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
        else:
            values = (0.1 * rng.standard_normal(shape)).astype(np.float32)
        found[name] = torch.from_numpy(values)
    assert len(found) == 566  # as many as the published file holds
    return found


@pytest.fixture(scope="module")
def file(weights: Mapping[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(dict(weights), path)
    return path


def test_the_features_are_torch_fidelitys(file: Path) -> None:
    pixels = np.random.default_rng(64).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    rows = extract(load_features("inception", inception_weights=file), pixels)
    assert rows.shape == (2, 2048)
    expected = [
        0.007356079760938883,
        0.8299057483673096,
        0.38065576553344727,
        3.8655028343200684,
        5.602545261383057,
        1.3011927604675293,
    ]
    np.testing.assert_allclose(rows[0, :6], expected, atol=1e-3)
    np.testing.assert_allclose(rows.sum(1, dtype=np.float64), [6069.2310164045775, 6090.28218354984], rtol=1e-4)


def test_a_constant_image_survives_the_resize() -> None:
    grey = torch.full((1, 3, 20, 30), 77.0)
    assert torch.equal(inception._resize(grey), torch.full((1, 3, 299, 299), 77.0))


def test_other_weights_make_no_fid(file: Path, weights: Mapping[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """By their hash: these are random."""
    features = load_inception(file)
    assert features.name.startswith("Inception[")
    assert features.frechet_name.endswith("]-FD")
    monkeypatch.setattr(inception, "_OFFICIAL", features.name[10:18])
    assert load_inception(file).frechet_name == "FID"
    save_file(dict(weights), file.with_suffix(".safetensors"))
    assert load_inception(file.with_suffix(".safetensors")).digest == features.digest


def test_weights_that_are_not_this_network_are_refused(weights: Mapping[str, torch.Tensor], tmp_path: Path) -> None:
    name = "Mixed_6c.branch7x7_2.conv.weight"
    lacking = {key: value for key, value in weights.items() if key != name}
    wrong = {**weights, name: torch.zeros(160, 159, 1, 7)}
    narrow = {**weights}
    for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
        narrow[f"Mixed_7c.branch1x1.{part}"] = weights[f"Mixed_7c.branch1x1.{part}"][:300]
    for number, (values, said) in enumerate(((lacking, name), (wrong, "another network"), (narrow, "2028 features"))):
        path = tmp_path / f"{number}.pth"
        torch.save(dict(values), path)
        with pytest.raises(EdgeSDError, match=said):
            load_inception(path)


def test_files_that_hold_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeSDError, match="is not a file"):
        load_inception(tmp_path / "missing.pth")
    text = tmp_path / "text.pth"
    text.write_text("<html>not found</html>")
    with pytest.raises(EdgeSDError, match=r"text\.pth"):
        load_inception(text)
    text.rename(tmp_path / "text.safetensors")
    with pytest.raises(EdgeSDError, match="no weights"):
        load_inception(tmp_path / "text.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(EdgeSDError, match="no tensors by name"):
        load_inception(tmp_path / "list.pth")


class Runs:
    """What a pickle can do to whoever opens it."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (Path.touch, (Path("ran"),))


def test_a_pickle_that_runs_something_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Runs()}, "bad.pth")
    with pytest.raises(EdgeSDError, match=r"bad\.pth"):
        load_inception(Path("bad.pth"))
    assert not Path("ran").exists()


def test_an_address_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        assert options["weights_only"]
        assert options["check_hash"]
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(EdgeSDError, match="no network") as raised:
        load_features("inception")
    assert "--inception-weights" in raised.value.hint
