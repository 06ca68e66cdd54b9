"""Comparisons in, a personal scorer out: what to compare, votes, training, calibration, metrics."""
