"""What the verbs of the command line do, as functions: the same names, arguments and defaults, results in place of tables.

They are silent; give an `Observer` of your own to be told how far they are. Bad input is an `EdgeSDError`, as anywhere.
"""

from edge_sd.api._bench import Benchmark as Benchmark
from edge_sd.api._bench import bench as bench
from edge_sd.api._distill import distill as distill
from edge_sd.api._export import export as export
from edge_sd.api._load import load as load
from edge_sd.api._parity import Proofs as Proofs
from edge_sd.api._parity import parity as parity
from edge_sd.api._quantize import Quantization as Quantization
from edge_sd.api._quantize import quantize as quantize
from edge_sd.api.observer import Observer as Observer
