"""Measures of samples and of programs."""

from edge_sd.evaluation.metrics import psnr_db as psnr_db
from edge_sd.evaluation.metrics import snr_db as snr_db
from edge_sd.evaluation.spectrum import radial_spectrum as radial_spectrum
from edge_sd.evaluation.spectrum import spectral_slope as spectral_slope
from edge_sd.evaluation.spectrum import spectrum_gap_db as spectrum_gap_db
