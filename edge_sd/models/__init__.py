"""The slim U-Net with wavelet gating. What needs torch is imported from its own module: `unet`, `count`, `wavelets`, …"""

from edge_sd.models.config import ModelConfig as ModelConfig
from edge_sd.models.presets import PRESETS as PRESETS
from edge_sd.models.presets import Preset as Preset
