"""Checkpoint and calibration → recipe and rounded weights: 8 and 4 bits that keep the picture."""
