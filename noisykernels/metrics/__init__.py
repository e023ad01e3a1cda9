"""What is measured of a prediction, and by which law its numbers vary; knows of no noise and no model."""

from noisykernels.metrics.accuracy import ACCURACY, Accuracy
from noisykernels.metrics.base import Metric
from noisykernels.metrics.law import BINARY, NAN, Binary, Bounded, Law, Real, Sums

__all__ = ["ACCURACY", "BINARY", "NAN", "Accuracy", "Binary", "Bounded", "Law", "Metric", "Real", "Sums"]
