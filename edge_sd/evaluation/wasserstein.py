"""Sliced Wasserstein distance by wavelet band and level: at which scale, and in which direction, samples miss.

As the SWD of Karras et al. 2018 (1710.10196, section 5), small patches of every scale are compared along random directions. Two
things are changed. The pyramid is the wavelet transform that the models' gates use, so a figure belongs to a subband; and both
sets are divided by the *real* standard deviation of the band: normalising each by its own would hide a band that is too weak.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation.distances import Estimate, Float64

DEFINITION = (
    "mean over random unit directions of the 1-D Wasserstein-1 distance between 3×3 RGB patches of the band's coefficients, "
    "in the real band's standard deviations; > 0 at finite n even for one source; ± from disjoint fifths of the images"
)

Float32 = NDArray[np.float32]

PROJECTIONS = 128
_PATCH = 3
_PATCHES = 8  # of an image and a band
_SPLITS = 5
_IMAGES = 256  # transformed at a time


@dataclass(frozen=True)
class BandPatches:
    """Patches of every band: {"LH1": (n, patches, 27) float32, "HL1": …, "HH3": …, "LL3": …}, 1 the finest level."""

    patches: dict[str, Float32]


def sliced_wasserstein(
    real: NDArray[np.floating], generated: NDArray[np.floating], *, projections: int = PROJECTIONS, seed: int = 0
) -> float:
    """Mean over random unit directions of the Wasserstein-1 distance between the two sets' projections.

    Args:
        real, generated: (n, d) each; of one n, so that a distance is the mean difference of sorted values.
        projections: random directions, uniform on the sphere; of d = 1 there is but one.

    Raises:
        EdgeSDError: the shapes differ.
    """
    x, y = np.asarray(real), np.asarray(generated)
    if x.shape != y.shape or x.ndim != 2 or not len(x):
        raise EdgeSDError(f"sliced Wasserstein compares sets of one shape (n, d), not {x.shape} and {y.shape}", "give equal n")
    directions = _directions(x.shape[1], projections, seed)
    # Sorting is the cost; transposed, it runs along contiguous memory.
    ours, theirs = (np.sort(directions.T @ values.T, axis=1) for values in (x, y))
    return float(np.abs(ours - theirs).mean())


def _directions(width: int, projections: int, seed: int) -> Float64:
    """Unit vectors (width, projections)."""
    if width == 1:
        return np.ones((1, 1))
    drawn = np.random.default_rng(seed).standard_normal((width, projections))
    units: Float64 = drawn / np.linalg.norm(drawn, axis=0)
    return units


def levels_of(size: int, most: int = 3) -> int:
    """How often images of a size can be halved with a patch's room left in the coarsest band, at most `most`.

    Raises:
        UsageError: not once.
    """
    levels = 0
    while levels < most and size % 2 == 0 and size // 2 >= _PATCH:
        levels, size = levels + 1, size // 2
    if not levels:
        raise UsageError(
            f"images of {size} px cannot be halved into wavelet bands of {_PATCH}×{_PATCH}", "use an even size of 6 px up"
        )
    return levels


def band_patches(pixels: NDArray[np.uint8], *, wavelet: str = "haar", levels: int = 3, seed: int = 0) -> BandPatches:
    """Cut patches out of every wavelet band of images (n, C, H, W), H = W.

    Where an image's patches lie depends on the seed, its index and n alone, so equal sets of images give equal patches.
    """
    import torch

    from edge_sd.models.wavelets import SUBBANDS, dwt2

    found: dict[str, list[Float32]] = {}
    for start in range(0, len(pixels), _IMAGES):
        low = torch.from_numpy(np.asarray(pixels[start : start + _IMAGES], np.float32) / 127.5 - 1)
        for level in range(1, levels + 1):
            bands = dwt2(low, wavelet).unflatten(1, (-1, len(SUBBANDS)))
            low = bands[:, :, 0].contiguous()
            for index, band in enumerate(SUBBANDS):
                if band != "LL" or level == levels:
                    # A level's bands are cut at the same places.
                    rng = np.random.default_rng((seed, level, start))
                    found.setdefault(f"{band}{level}", []).append(_cut(bands[:, :, index].numpy(), rng))
    order = sorted(found, key=lambda name: (name.startswith("LL"), name[-1]))
    return BandPatches({name: np.concatenate(found[name]) for name in order})


def _cut(band: Float32, rng: np.random.Generator) -> Float32:
    """(n, C, h, w) → (n, patches, C·3·3)."""
    windows = np.lib.stride_tricks.sliding_window_view(band, (_PATCH, _PATCH), axis=(2, 3))
    count, _, rows, columns = windows.shape[:4]
    tops, lefts = (rng.integers(0, most, (count, _PATCHES)) for most in (rows, columns))
    chosen = windows[np.arange(count)[:, None], :, tops, lefts]  # (n, patches, C, 3, 3)
    flat: Float32 = chosen.reshape(count, _PATCHES, -1)
    return flat


def band_distances(
    real: BandPatches, generated: BandPatches, *, projections: int = PROJECTIONS, seed: int = 0
) -> dict[str, Estimate]:
    """`sliced_wasserstein` of every band.

    Raises:
        EdgeSDError: other bands, or another number of images.
    """
    if real.patches.keys() != generated.patches.keys():
        raise EdgeSDError("the two sets of images have different wavelet bands", "give images of one size")
    found = {}
    for name, patches in real.patches.items():
        other = generated.patches[name]
        scale = np.float32(max(float(patches.std()), 1e-6))  # a band that is silent in the real images
        whole = _distance(patches / scale, other / scale, projections, seed)
        splits = [_distance(patches[i::_SPLITS] / scale, other[i::_SPLITS] / scale, projections, seed) for i in range(_SPLITS)]
        enough = len(patches) >= _SPLITS * 2
        found[name] = Estimate(whole, float(np.std(splits, ddof=1) / np.sqrt(_SPLITS)) if enough else None)
    return found


def _distance(real: Float32, generated: Float32, projections: int, seed: int) -> float:
    if real.shape != generated.shape:
        raise EdgeSDError(f"{len(real)} real images and {len(generated)} generated ones", "compare equal numbers")
    if not len(real):
        return 0.0
    x, y = (patches.reshape(-1, patches.shape[-1]) for patches in (real, generated))
    return sliced_wasserstein(x, y, projections=projections, seed=seed)
