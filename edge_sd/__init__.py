"""edge-sd takes a diffusion model from a GPU to a phone: slim, distil, quantize, export, prove, measure."""

__version__ = "0.1.0"
