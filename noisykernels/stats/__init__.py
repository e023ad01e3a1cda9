"""Statistics of records: intervals, midpoints, votes, regression; must not know torch."""

from noisykernels.stats.intervals import band, wilson
from noisykernels.stats.midpoint import Midpoint, fit_midpoint
from noisykernels.stats.records import Curve, Meta, Record
from noisykernels.stats.votes import VoteCurve, executions_needed, majority, mean_scores

__all__ = [
    "Curve",
    "Meta",
    "Midpoint",
    "Record",
    "VoteCurve",
    "band",
    "executions_needed",
    "fit_midpoint",
    "majority",
    "mean_scores",
    "wilson",
]
