"""The picture of an evaluation: both spectra, the gap between them, and the distance in every wavelet band."""

from edge_sd.evaluation.record import Evaluation
from edge_sd.report.page import png, subplots

_REAL, _GENERATED = "#222222", "#d62728"
_BAND = "wavelet SWD "


def evaluation_figure(result: Evaluation) -> bytes:
    """Draw an evaluation as PNG; every panel says its n."""
    figure, (spectra, gap, bands) = subplots(3)
    curves = result.spectra
    spectra.plot(curves.frequencies, curves.real, color=_REAL, label="real")
    spectra.plot(curves.frequencies, curves.generated, color=_GENERATED, label=result.origin.name)
    spectra.set(title=f"power spectrum, {result.n} images each", xlabel="cycles / pixel", xscale="log")
    if min(*curves.real, *curves.generated) > 0:  # images of one colour have no power to take the logarithm of
        spectra.set_yscale("log")
    spectra.tick_params(axis="x", which="minor", labelbottom=False)  # there is no room for them
    spectra.legend(frameon=False)
    whole = result.figure("spectrum gap dB")
    gap.axhline(0, color=_REAL, linewidth=1)
    gap.plot(curves.frequencies, curves.gap_db, color=_GENERATED)
    gap.set(title=f"generated against real, {whole.value:.2f} dB off", xlabel="cycles / pixel", ylabel="dB")
    found = [one for one in result.figures if one.name.startswith(_BAND)]
    names = [one.name.removeprefix(_BAND) for one in found]
    bands.bar(
        names,
        [one.value for one in found],
        yerr=[one.standard_error or 0.0 for one in found],
        color=_GENERATED,
        ecolor=_REAL,
        capsize=2,
    )
    bands.set(title=f"sliced Wasserstein by band, n {result.n}", ylabel="real s.d.", ylim=(0, None))
    bands.tick_params(axis="x", rotation=60)
    return png(figure)
