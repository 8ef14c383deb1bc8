"""Measures of samples and of programs."""

from edge_sd.evaluation.distances import Estimate as Estimate
from edge_sd.evaluation.distances import Gaussian as Gaussian
from edge_sd.evaluation.distances import frechet_distance as frechet_distance
from edge_sd.evaluation.distances import kernel_distance as kernel_distance
from edge_sd.evaluation.manifold import precision_recall as precision_recall
from edge_sd.evaluation.metrics import psnr_db as psnr_db
from edge_sd.evaluation.metrics import snr_db as snr_db
from edge_sd.evaluation.spectrum import radial_spectrum as radial_spectrum
from edge_sd.evaluation.spectrum import spectral_slope as spectral_slope
from edge_sd.evaluation.spectrum import spectrum_gap_db as spectrum_gap_db
from edge_sd.evaluation.wasserstein import sliced_wasserstein as sliced_wasserstein
