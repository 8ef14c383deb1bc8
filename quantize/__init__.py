"""Checkpoint and calibration → recipe and rounded weights. Nothing is here yet; the folder keeps its name in the wheel."""
