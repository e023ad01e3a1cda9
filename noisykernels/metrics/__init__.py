"""What is measured of a prediction, and by which law its numbers vary; knows of no noise and no model."""

from noisykernels.metrics.accuracy import ACCURACY, Accuracy
from noisykernels.metrics.base import Metric
from noisykernels.metrics.classes import NLL, Brier, Perplexity, TokenAccuracy, TopK
from noisykernels.metrics.clean import KL, Agreement, TokenAgreement
from noisykernels.metrics.functions import ByRow, WholePass
from noisykernels.metrics.labels import BinaryAccuracy, MultiLabel
from noisykernels.metrics.law import BINARY, NAN, Binary, Bounded, Law, Real, Sums
from noisykernels.metrics.names import NAMES
from noisykernels.metrics.rows import PerRow
from noisykernels.metrics.sums import AUROC, ECE, F1, MeanIoU, OfSums, Torchmetrics
from noisykernels.metrics.values import MSE, Cosine, RelativeMSE
from noisykernels.metrics.weighted import Weighted

__all__ = [
    "ACCURACY", "AUROC", "BINARY", "ECE", "F1", "KL", "MSE", "NAMES", "NAN", "NLL", "Accuracy", "Agreement", "Binary",
    "BinaryAccuracy", "Bounded", "Brier", "ByRow", "Cosine", "Law", "MeanIoU", "Metric", "MultiLabel", "OfSums",
    "PerRow", "Perplexity", "Real", "RelativeMSE", "Sums", "TokenAccuracy", "TokenAgreement", "TopK", "Torchmetrics",
    "Weighted", "WholePass",
]  # fmt: skip
