"""Results and their views: studies, comparisons, reports, allocations; must not know torch."""

from noisykernels.study.allocation import MAPPINGS, allocate, predicted_accuracy, tailored, uniform
from noisykernels.study.comparison import Comparison, Pair, compare
from noisykernels.study.html_report import report
from noisykernels.study.result import Result, ResultFileError
from noisykernels.study.study import Study

__all__ = [
    "MAPPINGS",
    "Comparison",
    "Pair",
    "Result",
    "ResultFileError",
    "Study",
    "allocate",
    "compare",
    "predicted_accuracy",
    "report",
    "tailored",
    "uniform",
]
