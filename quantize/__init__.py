"""Checkpoint and calibration → recipe and rounded weights: 8 and 4 bits that keep the picture."""

from edge_sd.callable_module import make_callable
from edge_sd.quantize._quantize import CALIBRATION as CALIBRATION
from edge_sd.quantize._quantize import MODEL as MODEL
from edge_sd.quantize._quantize import RECIPE as RECIPE
from edge_sd.quantize._quantize import Quantized as Quantized
from edge_sd.quantize._quantize import calibrate as calibrate
from edge_sd.quantize._quantize import quantize as quantize
from edge_sd.quantize.calibration import Calibration as Calibration
from edge_sd.quantize.calibration import CalibrationRequest as CalibrationRequest
from edge_sd.quantize.checkpoint import QuantizedCheckpoint as QuantizedCheckpoint
from edge_sd.quantize.checkpoint import load_quantized as load_quantized
from edge_sd.quantize.recipe import LayerRecipe as LayerRecipe
from edge_sd.quantize.recipe import Recipe as Recipe
from edge_sd.quantize.recipe import default_layers as default_layers
from edge_sd.quantize.recipe import load_recipe as load_recipe
from edge_sd.quantize.reconstruction import ReconstructionSettings as ReconstructionSettings

make_callable(__name__)
