"""Training and spectrum-aware distillation."""

from edge_sd.training.config import DistillConfig as DistillConfig
from edge_sd.training.config import TrainConfig as TrainConfig
