"""The slim U-Net with wavelet gating, its configurations and what they cost."""

from edge_sd.models.config import ModelConfig as ModelConfig
from edge_sd.models.count import Count as Count
from edge_sd.models.count import count as count
from edge_sd.models.presets import PRESETS as PRESETS
from edge_sd.models.presets import Preset as Preset
from edge_sd.models.unet import SpectralUNet as SpectralUNet
