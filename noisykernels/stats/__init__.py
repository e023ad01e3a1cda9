"""Statistics of records: intervals, midpoints, votes, regression; must not know torch."""

from noisykernels.stats.intervals import band, wilson
from noisykernels.stats.logistic import fit_midpoint
from noisykernels.stats.midpoint import Midpoint
from noisykernels.stats.questions import Drop, Keep, Ratio, Value
from noisykernels.stats.records import Curve, Meta, Record
from noisykernels.stats.tolerance import fit_tolerance
from noisykernels.stats.votes import VoteCurve, executions_needed, majority, mean_scores

__all__ = [
    "Curve",
    "Drop",
    "Keep",
    "Meta",
    "Midpoint",
    "Ratio",
    "Record",
    "Value",
    "VoteCurve",
    "band",
    "executions_needed",
    "fit_midpoint",
    "fit_tolerance",
    "majority",
    "mean_scores",
    "wilson",
]
