"""Pictures side by side: what each origin drew, 8 × the difference to a reference, and the logarithm of its power spectrum."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sd.data import grid, png_bytes, rgb
from edge_sd.evaluation import psnr_db, radial_spectrum, spectral_slope, spectrum_gap_db
from edge_sd.report.data import Drawn, Gallery, Spectrum

GAIN = 8  # of the differences: what the eye would not see at once
_SHOWN = 16
_SHEET = 288  # pixels of a sheet's side, at least: below, single pixels could not be told apart
_DECADES = 8.0  # of the power that a picture of it spans, from its largest downwards

Files = dict[str, bytes]


@dataclass(frozen=True)
class Images:
    """What one origin drew.

    Attributes:
        values: (n, C, H, W), −1 … 1.
        reference: title of those that it is compared with, image by image; empty: none.
    """

    title: str
    about: str
    values: NDArray[np.float32]
    reference: str = ""


def gallery(entries: Sequence[Images], folder: str, prefix: str, *, same_noise: bool) -> tuple[Gallery, Files]:
    """Draw all pictures of a gallery.

    Args:
        entries: the first one's spectrum is what the others' gaps are to.
        folder: of the pictures, relative to report.json.
        prefix: of their names.

    Returns:
        The gallery, and PNG bytes by file.
    """
    found: Files = {}
    by_title = {entry.title: entry.values for entry in entries}
    count = min(len(entry.values) for entry in entries)
    top = max(_log_power(entry.values).max() for entry in entries)

    def kept(name: str, png: bytes) -> str:
        found[f"{folder}/{prefix}{name}.png"] = png
        return f"{folder}/{prefix}{name}.png"

    drawn = []
    for index, entry in enumerate(entries):
        reference = by_title.get(entry.reference)
        comparable = reference is not None and reference.shape[1:] == entry.values.shape[1:]
        pair = (reference[:count], entry.values[:count]) if reference is not None and comparable else None
        drawn.append(
            Drawn(
                title=entry.title,
                about=entry.about,
                images=kept(f"{index}-images", sheet(entry.values[:_SHOWN])),
                difference=None if pair is None else kept(f"{index}-difference", sheet(((pair[1] - pair[0]) * GAIN)[:_SHOWN])),
                log_spectrum=kept(f"{index}-spectrum", _spectrum_picture(_log_power(entry.values), top)),
                reference=entry.reference if pair is not None else "",
                psnr_db=None if pair is None else psnr_db(*pair),
                rmse=None if pair is None else float(np.sqrt(np.mean((pair[1] - pair[0]) ** 2))) / 2,
            )
        )
    spectra = [spectrum(entry.title, entry.values, entries[0].values) for entry in entries]
    shown = min(count, _SHOWN)
    return Gallery(drawn=drawn, spectra=spectra, count=count, shown=shown, same_noise=same_noise), found


def sheet(values: NDArray[np.float32]) -> bytes:
    """PNG of images (n, C, H, W), as square a grid as they fill, on pixels large enough to be seen."""
    finite = np.nan_to_num(values, nan=1.0, posinf=1.0, neginf=-1.0)
    columns = int(np.ceil(np.sqrt(len(finite))))
    scale = max(1, -(-_SHEET // (columns * finite.shape[-1])))
    return png_bytes(grid(rgb(finite), columns=columns, scale=scale))


def spectrum(role: str, values: NDArray[np.float32], first: NDArray[np.float32]) -> Spectrum:
    """The mean radial spectrum of images, and how far it is from that of others."""
    clipped, compared = np.clip(values, -1, 1), np.clip(first, -1, 1)
    frequencies, power = radial_spectrum(clipped)
    gap = spectrum_gap_db(compared, clipped) if first.shape[-1] == values.shape[-1] else float("nan")
    return Spectrum(
        role=role, frequencies=frequencies.tolist(), power=power.tolist(), slope=_slope(frequencies, power), gap_db=gap
    )


def _slope(frequencies: NDArray[np.float64], power: NDArray[np.float64]) -> float:
    floor = max(float(power.max()), 1e-300) * 1e-16  # images of one colour have no power to take the logarithm of
    return spectral_slope(frequencies, np.maximum(power, floor))


def _log_power(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """log10 of the mean power at each frequency, (H, W), frequency 0 in the middle; windowed as in `radial_powers`."""
    size = values.shape[-1]
    window = np.hanning(size + 2)[1:-1]
    clipped = np.clip(values, -1, 1).astype(np.float64)
    centred = (clipped - clipped.mean((-2, -1), keepdims=True)) * window[:, None] * window[None]
    power = (np.abs(np.fft.fft2(centred)) ** 2).mean((0, 1))
    logarithm: NDArray[np.float64] = np.log10(np.maximum(np.fft.fftshift(power), 1e-300))
    return logarithm


def _spectrum_picture(log_power: NDArray[np.float64], top: float) -> bytes:
    """PNG of a log spectrum in viridis, from `top` down `_DECADES` decades: one scale for all pictures that are side by side."""
    from matplotlib import colormaps

    share = np.clip((log_power - top + _DECADES) / _DECADES, 0, 1)
    image = (colormaps["viridis"](share)[..., :3] * 255).round().astype(np.uint8)
    scale = max(1, -(-_SHEET // image.shape[0]))
    return png_bytes(image.repeat(scale, axis=0).repeat(scale, axis=1))
