"""What images are compared by: Inception's features, or those of any callable, with a name and a hash that identify them.

A distance is called FID or KID by Inception's features alone; by others it carries their name: MobileNetFeatures-KID.
"""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.errors import EdgeSDError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

INCEPTION = "inception"

_SPEC = "give --features inception, or package.module:callable"


@dataclass(frozen=True)
class Features:
    """A feature extractor.

    Attributes:
        name: for people: "Inception", or that of the callable.
        digest: hex SHA-256 over its source file and its weights.
        compute: pixels (B, 3, H, W) uint8 tensor → features (B, D).
    """

    name: str
    digest: str
    compute: "Callable[[Tensor], Tensor]"

    @property
    def frechet_name(self) -> str:
        """What the Fréchet distance of these features is called."""
        return "FID" if self.name == "Inception" else f"{self.name}-FD"

    @property
    def kernel_name(self) -> str:
        """What their kernel distance is called."""
        return "KID" if self.name == "Inception" else f"{self.name}-KID"


def load_features(
    spec: str, *, name: str | None = None, size: int | None = None, inception_weights: Path | None = None
) -> Features:
    """Load a feature extractor.

    Args:
        spec: "inception", or "package.module:callable", importable from here or from the current directory. The callable maps
            images, float32 (B, 3, S, S) in [−1, 1], to features (B, D); or, called without arguments (a class, a factory), it
            returns something that does. Where that has an attribute `size`, images are resized to it.
        name: what its distances are called; the class's or function's own if left out.
        size: S, where the extractor has no `size` of its own; images keep theirs if left out.
        inception_weights: a file of them; fetched from their usual address if left out.

    Raises:
        UsageError: no such module or callable, or an option that does not belong to it.
        EdgeSDError: its import or its construction fails.
    """
    if spec == INCEPTION:
        if name is not None or size is not None:
            raise UsageError(
                "Inception's name and size are fixed: that is what makes a FID", "leave --features-name and -size out"
            )
        from edge_sd.evaluation.inception import load_inception

        return load_inception(inception_weights)
    if inception_weights is not None:
        raise UsageError(f"--inception-weights do not belong to the features {spec}", "leave them out, or --features inception")
    if name is not None and name.lower() in ("", "inception", "fid", "kid"):
        raise UsageError(f"the name {name!r} would make other features' distances look like FID and KID", "give another name")
    module_name, colon, attribute = spec.partition(":")
    if not (module_name and colon and attribute):
        raise UsageError(f"features {spec!r} name no callable", _SPEC)
    extractor, source = _find(module_name, attribute)
    own_size = getattr(extractor, "size", None)
    side = size if own_size is None else own_size
    if side is not None and (not isinstance(side, int) or side < 1):
        raise UsageError(f"{spec} wants images of size {side!r}", "size is a whole number of pixels")
    return wrap_features(extractor, name or _name_of(extractor), _digest(extractor, source), side)


def wrap_features(extractor: "Callable[[Tensor], Tensor]", name: str, digest: str, size: int | None = None) -> Features:
    """`Features` of a function images float32 (B, 3, S, S) in [−1, 1] → (B, D)."""

    def compute(pixels: "Tensor") -> "Tensor":
        import torch.nn.functional as F

        images = pixels.float() / 127.5 - 1
        if size is not None and tuple(images.shape[-2:]) != (size, size):
            # Antialiased, so that shrinking does not alias; it can overshoot by rounding alone, hence the clamp.
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(-1, 1)
        return extractor(images)

    return Features(name, digest, compute)


def extract(
    features: Features,
    pixels: NDArray[np.uint8],
    *,
    batch_size: int = 64,
    observe: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float32]:
    """Features of images (N, 3, H, W) uint8, (N, D) float32.

    Args:
        observe: called with (images done, images in all).

    Raises:
        EdgeSDError: the extractor fails, or returns something that is not (B, D), floating and finite; the message says what.
    """
    import torch

    found: list[NDArray[np.float32]] = []
    for start in range(0, len(pixels), batch_size):
        block = torch.from_numpy(np.ascontiguousarray(pixels[start : start + batch_size]))
        try:
            with torch.no_grad():
                values = features.compute(block)
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
            raise EdgeSDError(
                f"the features {features.name} fail on images {tuple(block.shape)}: {_line(error)}",
                "do they want another size? --feature-size 224",
            ) from error
        if (
            not isinstance(values, torch.Tensor)
            or values.ndim != 2
            or len(values) != len(block)
            or not values.is_floating_point()
        ):
            what = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, torch.Tensor) else type(values).__name__
            raise EdgeSDError(
                f"the features {features.name} of {len(block)} images are {what}, not a floating tensor ({len(block)}, D)",
                "return one row an image: pooled.flatten(1)",
            )
        if found and values.shape[1] != found[0].shape[1]:
            raise EdgeSDError(
                f"the features {features.name} are {found[0].shape[1]} wide and then {values.shape[1]}",
                "return rows of one width",
            )
        rows = values.detach().float().cpu().numpy()
        if not np.isfinite(rows).all():
            bad = start + int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
            raise EdgeSDError(f"the features {features.name} of image {bad} hold a NaN or an infinity", "look at the extractor")
        found.append(rows)
        observe(min(start + batch_size, len(pixels)), len(pixels))
    if not found:
        raise EdgeSDError("there are no images to take features of", "give some")
    return np.concatenate(found)


# Finding the callable


def _find(module_name: str, attribute: str) -> "tuple[Callable[[Tensor], Tensor], Path | None]":
    """The function images → features, and the source file it comes from."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does when it is imported
        known = isinstance(error, ModuleNotFoundError) and error.name in (module_name, module_name.partition(".")[0])
        if known:
            raise UsageError(f"there is no module {module_name!r} here or in {here}", _SPEC) from error
        raise EdgeSDError(f"importing {module_name} fails: {_line(error)}", "mend the module") from error
    finally:
        if added:
            sys.path.remove(here)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"the module {module_name} has no {attribute!r}", _SPEC)
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{module_name}:{attribute} is a {type(found).__name__}, which cannot be called", _SPEC)
    if _wants_nothing(found):
        try:
            found = found()
        except Exception as error:  # whatever its construction does
            raise EdgeSDError(f"{module_name}:{attribute}() fails: {_line(error)}", "mend it") from error
        if not callable(found):
            raise UsageError(f"{module_name}:{attribute}() returns a {type(found).__name__}, which cannot be called", _SPEC)
    _quieten(found)
    file = getattr(module, "__file__", None)
    return found, Path(file) if file else None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _wants_nothing(found: Any) -> bool:
    """Whether it is a class, or a function without required arguments: then it makes the extractor, and is not it."""
    if inspect.isclass(found):
        return True
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # written in C
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return not any(parameter.kind in positional and (parameter.default is parameter.empty) for parameter in parameters)


def _quieten(extractor: Any) -> None:
    """Evaluation mode: no dropout, no batch statistics."""
    import torch

    if isinstance(extractor, torch.nn.Module):
        extractor.eval()


def _name_of(extractor: Any) -> str:
    name = getattr(extractor, "__name__", None) or type(extractor).__name__
    return str(name)


# What it is


def _digest(extractor: Any, source: Path | None) -> str:
    """SHA-256 over the source file, and over every tensor that the extractor holds, registered or not."""
    digest = hashlib.sha256()
    if source is not None and source.is_file():
        digest.update(source.read_bytes())
    for name, value in sorted(_tensors(extractor), key=lambda item: item[0]):
        array = np.ascontiguousarray(value)
        digest.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        digest.update(array.reshape(-1).view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def _tensors(extractor: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    import torch

    held: dict[str, Any] = {}
    if isinstance(extractor, torch.nn.Module):
        held.update(extractor.state_dict())
    for name, value in getattr(extractor, "__dict__", {}).items():
        if not name.startswith("_"):
            held.update({f"{name}.{key}": item for key, item in value.items()} if isinstance(value, Mapping) else {name: value})
    for name, value in held.items():
        if isinstance(value, torch.Tensor):
            plain = value.detach().cpu()
            yield name, (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
        elif isinstance(value, np.ndarray) and value.dtype != object:
            yield name, value
