"""The Inception network of FID and KID: Szegedy et al. 2015 (1512.00567) as TensorFlow published it on 2015-12-05.

It is written out here because the packages that have it bring torchvision, whose wheels import only beside the very build of
torch that they were made for. The weights are the file that torch-fidelity and pytorch-fid fetch, and the features are theirs,
the first 2048 of the pooled layer. What differs from torchvision's network: TensorFlow's resize, average pools that do not
count their padding, and a max pool in the last block.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sd.errors import EdgeSDError
from edge_sd.evaluation.features import Features
from edge_sd.files import sha256, tensors_digest

if TYPE_CHECKING:
    from torch import Tensor

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
# How the SHA-256 of that file begins; by other weights a distance is no FID.
_OFFICIAL = "6726825d"
_SIDE = 299
_WIDTH = 2048


def load_inception(path: Path | None = None) -> Features:
    """The features of FID and KID.

    Args:
        path: the weights, `weights-inception-2015-12-05-6726825d.pth` or tensors of those names as `.safetensors`; fetched from
            `URL` into torch's cache if left out. By other weights than the published file's the name is Inception[…].

    Raises:
        EdgeSDError: no such file, not weights of this network, or the address cannot be reached.
    """
    import torch

    weights, name = _read(path)
    network = _Inception(weights)
    network.check(path or Path(URL))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device)
    digest = tensors_digest({key: value.numpy() for key, value in weights.items()})
    source = Path(__file__).read_bytes()
    return Features(name, hashlib.sha256(source + digest.encode()).hexdigest(), lambda pixels: network(pixels.to(device)))


def _read(path: Path | None) -> "tuple[dict[str, Tensor], str]":
    """Tensors by name, and what the features may be called."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path is None:
        try:
            found = torch.hub.load_state_dict_from_url(
                URL, map_location="cpu", check_hash=True, progress=False, weights_only=True
            )
        except OSError as error:  # urllib's errors among them
            raise EdgeSDError(
                f"cannot fetch the Inception weights: {error}", f"fetch {URL} by other means and give --inception-weights FILE"
            ) from error
        return _tensors(found, Path(URL)), "Inception"
    if not path.is_file():
        raise EdgeSDError(f"{path} is not a file", f"fetch {URL} and give its path")
    digest = sha256(path)
    try:
        # With weights_only a pickle can hold tensors and nothing that runs.
        read = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise EdgeSDError(f"{path} holds no weights: {error}", f"fetch it again from {URL}") from error
    except Exception as error:  # torch's and pickle's own, whose many lines are about torch
        raise EdgeSDError(
            f"{path} is not a file of tensors alone ({type(error).__name__})", f"fetch it again from {URL}"
        ) from error
    return _tensors(read, path), "Inception" if digest.startswith(_OFFICIAL) else f"Inception[{digest[:8]}]"


def _tensors(read: Any, path: Path) -> "dict[str, Tensor]":
    import torch

    if not isinstance(read, Mapping) or not all(isinstance(value, torch.Tensor) for value in read.values()):
        raise EdgeSDError(f"{path} holds no tensors by name", f"fetch it again from {URL}")
    return {str(name): value.float() if value.is_floating_point() else value for name, value in read.items()}


class _Inception:
    """The network as a function of named weights: pixels (B, 3, H, W) uint8 → features (B, 2048)."""

    def __init__(self, weights: "Mapping[str, Tensor]") -> None:
        self._weights = dict(weights)

    def to(self, device: str) -> None:
        """Move the weights."""
        self._weights = {name: value.to(device) for name, value in self._weights.items()}

    def check(self, path: Path) -> None:
        """Refuse weights that are not this network's; nothing is computed."""
        import torch

        bare = _Inception({name: value.to("meta") for name, value in self._weights.items()})
        try:
            width = bare._network(torch.empty(1, 3, _SIDE, _SIDE, device="meta")).shape[1]
        except KeyError as error:
            raise EdgeSDError(f"{path} lacks the tensor {error.args[0]}", f"fetch the weights from {URL}") from error
        except RuntimeError as error:
            said = str(error).partition("\n")[0]
            raise EdgeSDError(f"{path} holds weights of another network: {said}", f"fetch them from {URL}") from error
        if width != _WIDTH:
            raise EdgeSDError(f"{path} makes {width} features, not {_WIDTH}", f"fetch the weights from {URL}")

    def __call__(self, pixels: "Tensor") -> "Tensor":
        return self._network((_resize(pixels.float()) - 128) / 128)

    def _network(self, x: "Tensor") -> "Tensor":
        import torch.nn.functional as F
        from torch import cat

        x = self._conv("Conv2d_1a_3x3", x, stride=2, same=False)
        x = self._conv("Conv2d_2a_3x3", x, same=False)
        x = self._conv("Conv2d_2b_3x3", x)
        x = F.max_pool2d(x, 3, 2)
        x = self._conv("Conv2d_3b_1x1", x)
        x = self._conv("Conv2d_4a_3x3", x, same=False)
        x = F.max_pool2d(x, 3, 2)  # (B, 192, 35, 35)
        for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            five = self._chain(f"{block}.branch5x5", x, 2)
            double = self._chain(f"{block}.branch3x3dbl", x, 3)
            x = cat([self._conv(f"{block}.branch1x1", x), five, double, self._pooled(block, x)], 1)
        three = self._conv("Mixed_6a.branch3x3", x, stride=2, same=False)
        x = cat([three, self._chain("Mixed_6a.branch3x3dbl", x, 3, halve=True), F.max_pool2d(x, 3, 2)], 1)  # (B, 768, 17, 17)
        for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            seven = self._chain(f"{block}.branch7x7", x, 3)
            double = self._chain(f"{block}.branch7x7dbl", x, 5)
            x = cat([self._conv(f"{block}.branch1x1", x), seven, double, self._pooled(block, x)], 1)
        three = self._chain("Mixed_7a.branch3x3", x, 2, halve=True)
        x = cat([three, self._chain("Mixed_7a.branch7x7x3", x, 4, halve=True), F.max_pool2d(x, 3, 2)], 1)  # (B, 1280, 8, 8)
        for block in ("Mixed_7b", "Mixed_7c"):
            three = self._conv(f"{block}.branch3x3_1", x)
            double = self._chain(f"{block}.branch3x3dbl", x, 2)
            ends = [self._conv(f"{block}.branch3x3_2{end}", three) for end in "ab"]
            ends += [self._conv(f"{block}.branch3x3dbl_3{end}", double) for end in "ab"]
            x = cat([self._conv(f"{block}.branch1x1", x), *ends, self._pooled(block, x, largest=block == "Mixed_7c")], 1)
        return x.mean((2, 3))

    def _chain(self, stem: str, x: "Tensor", length: int, *, halve: bool = False) -> "Tensor":
        """Convolutions stem_1 … stem_length, the last of them halving the size where that is asked for."""
        for number in range(1, length + 1):
            last = halve and number == length
            x = self._conv(f"{stem}_{number}", x, stride=2 if last else 1, same=not last)
        return x

    def _pooled(self, block: str, x: "Tensor", *, largest: bool = False) -> "Tensor":
        import torch.nn.functional as F

        pooled = F.max_pool2d(x, 3, 1, 1) if largest else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return self._conv(f"{block}.branch_pool", pooled)

    def _conv(self, name: str, x: "Tensor", *, stride: int = 1, same: bool = True) -> "Tensor":
        """Convolution without bias, batch norm by stored statistics, ReLU."""
        import torch.nn.functional as F

        weight = self._weights[f"{name}.conv.weight"]
        pad = (weight.shape[2] // 2, weight.shape[3] // 2) if same else (0, 0)
        x = F.conv2d(x, weight, stride=stride, padding=pad)
        mean, variance, gain, bias = (
            self._weights[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu(F.batch_norm(x, mean, variance, gain, bias, eps=1e-3))


def _resize(x: "Tensor") -> "Tensor":
    """Bilinear to 299 px as TensorFlow 1 does it: source = target · scale, corners and centres not aligned."""
    import torch

    for dim in (3, 2):
        length = x.shape[dim]
        place = torch.arange(_SIDE, dtype=torch.float32, device=x.device) * torch.tensor(length / _SIDE, dtype=torch.float32)
        low = place.long()
        share = (place - low).view((-1, 1) if dim == 2 else (-1,))
        below, above = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp_max(length - 1))
        x = below + (above - below) * share
    return x
