"""Training and spectrum-aware distillation."""

from edge_sd.training.config import DistillConfig as DistillConfig
from edge_sd.training.config import TrainConfig as TrainConfig
from edge_sd.training.fit import distill as distill
from edge_sd.training.fit import fit as fit
from edge_sd.training.fit import fit_autoencoder as fit_autoencoder
from edge_sd.training.loop import Progress as Progress
