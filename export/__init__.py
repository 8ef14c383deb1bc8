"""Checkpoint and plan → programs in a bundle. A new target is a new file in this folder."""

from edge_sd.export._export import TorchSession as TorchSession
from edge_sd.export._export import export_bundle as export_bundle
from edge_sd.export._export import targets as targets
from edge_sd.export._target import Target as Target
