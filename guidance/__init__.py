"""Scorers in the sampling loop."""

from .tap import Step, tap

__all__ = ["Step", "tap"]
