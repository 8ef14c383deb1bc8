"""Bundle → predictions, and parity between runtimes. A new runtime is a new file in this folder."""

from edge_sd.runtimes._child import isolated as isolated
from edge_sd.runtimes._loop import open_sampler as open_sampler
from edge_sd.runtimes._loop import rows_of as rows_of
from edge_sd.runtimes._loop import sample_bundle as sample_bundle
from edge_sd.runtimes._runtime import Runtime as Runtime
from edge_sd.runtimes._runtime import find_runtime as find_runtime
from edge_sd.runtimes._runtime import load_denoiser as load_denoiser
from edge_sd.runtimes._runtime import runtimes as runtimes
