"""Saved Core ML programs, evaluated where there is no Core ML: read from disk, unpacked, and computed operator by operator."""

from edge_sd.runtimes.mil.evaluate import LABEL as LABEL
from edge_sd.runtimes.mil.evaluate import Evaluator as Evaluator
from edge_sd.runtimes.mil.evaluate import load_evaluator as load_evaluator
