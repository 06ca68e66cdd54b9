"""Scores -> decisions: pure functions on 1-D score tensors. Higher is better; NaN is never kept.

Needs torch only, works on any device, and changes none of its arguments. What every function
shares:

- Scores are a float tensor `[N]`, or any sequence of numbers (a Python sequence is read as float64,
  half precision as float32, whole numbers as float64).
- NaN means "could not be scored": it sorts last, is always rejected, gets label -1, no tag and a
  NaN percentile. Infinite scores are scores: beyond every finite one.
- Equal scores are equal: they share percentiles, ranks and buckets. Only where exactly k must be
  kept does the original position decide, the earlier first.
- N = 0 gives an empty result, except where a number must be measured from the scores: ValueError.
"""

from .aggregate import aggregate
from .buckets import assign_buckets, bucket_edges, buckets
from .calibrated import (
    Calibration,
    calibrated_rank,
    fit_tau,
    rank_bucket,
    solve_b,
    win_probability,
)
from .cascade import Cascade, cascade
from .gate import Gate, gate
from .ranks import percentile, spearman
from .reference import ReferenceStatistics, reference_statistics, standardize
from .select import Selection, best, sort, threshold, top_fraction, top_k
from .tags import QUALITY_NAMES, quality_tags, read_names, tag_caption

__all__ = [
    "QUALITY_NAMES",
    "Calibration",
    "Cascade",
    "Gate",
    "ReferenceStatistics",
    "Selection",
    "aggregate",
    "assign_buckets",
    "best",
    "bucket_edges",
    "buckets",
    "calibrated_rank",
    "cascade",
    "fit_tau",
    "gate",
    "percentile",
    "quality_tags",
    "rank_bucket",
    "read_names",
    "reference_statistics",
    "solve_b",
    "sort",
    "spearman",
    "standardize",
    "tag_caption",
    "threshold",
    "top_fraction",
    "top_k",
    "win_probability",
]
