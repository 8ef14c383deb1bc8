"""Checkpoint and plan → programs in a bundle. A new target is a new file in this folder."""

from edge_sd.callable_module import make_callable
from edge_sd.export._card import carded as carded
from edge_sd.export._check import Check as Check
from edge_sd.export._check import find_targets as find_targets
from edge_sd.export._check import parse_size as parse_size
from edge_sd.export._check import refuse as refuse
from edge_sd.export._check import targets as targets
from edge_sd.export._export import ExportRequest as ExportRequest
from edge_sd.export._export import TorchSession as TorchSession
from edge_sd.export._export import check_export as check_export
from edge_sd.export._export import export_bundle as export_bundle
from edge_sd.export._observed import observed_program as observed_program
from edge_sd.export._programs import DecoderProgram as DecoderProgram
from edge_sd.export._programs import DenoiserProgram as DenoiserProgram
from edge_sd.export._programs import TemporalProgram as TemporalProgram
from edge_sd.export._swap import swap_plan as swap_plan
from edge_sd.export._target import Source as Source
from edge_sd.export._target import Target as Target
from edge_sd.export._target import TargetOptions as TargetOptions

make_callable(__name__)
