"""Measures by name: the words of `metric=` and of the command line."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from noisykernels._util.checks import shown
from noisykernels.metrics.accuracy import ACCURACY
from noisykernels.metrics.base import Metric
from noisykernels.metrics.classes import NLL, Brier, Perplexity, TokenAccuracy, TopK
from noisykernels.metrics.clean import KL, Agreement, TokenAgreement
from noisykernels.metrics.labels import BinaryAccuracy, MultiLabel
from noisykernels.metrics.sums import AUROC, ECE, F1, MeanIoU, Torchmetrics
from noisykernels.metrics.values import MSE, Cosine, RelativeMSE

__all__ = ["NAMES", "MetricLike", "named"]

MetricLike = Metric | str | Callable[[Tensor, Tensor], Any]  # as studies take one

NAMES: dict[str, Metric] = {
    "accuracy": ACCURACY, "top5": TopK(5), "nll": NLL(), "perplexity": Perplexity(), "brier": Brier(),
    "token_accuracy": TokenAccuracy(), "kl": KL(), "agreement": Agreement(), "token_agreement": TokenAgreement(),
    "mse": MSE(), "relative_mse": RelativeMSE(), "cosine": Cosine(), "binary_accuracy": BinaryAccuracy(),
    "multilabel": MultiLabel(), "jaccard": MultiLabel("jaccard"), "mean_iou": MeanIoU(), "f1": F1(), "auroc": AUROC(),
    "ece": ECE(),
}  # fmt: skip


OTHER = {  # words that others say
    "acc": "accuracy", "auc": "auroc", "ce": "nll", "cross_entropy": "nll", "iou": "mean_iou", "loss": "nll",
    "ppl": "perplexity", "r2": "relative_mse", "roc_auc": "auroc", "snr": "relative_mse",
}  # fmt: skip


def named(op: str, given: Any) -> Any:
    """A measure from its name, from an object of torchmetrics, or as it is; a function stays one.

    Raises:
        TypeError: what is no measure, name or function.
        ValueError: a name that is none, with those near it.

    Example:
        >>> named("walk", "top5"), named("walk", "top3")
        (TopK(5), TopK(3))
        >>> named("walk", "perplex")
        Traceback (most recent call last):
        ValueError: walk: metric 'perplex' is not known; near it is 'perplexity'; there are accuracy, top5, nll, \
perplexity, brier, token_accuracy, kl, agreement, token_agreement, mse, relative_mse, cosine, binary_accuracy, \
multilabel, jaccard, mean_iou, f1, auroc, ece
    """
    if isinstance(given, str):
        word = given.strip().lower().replace("-", "_")
        if word in NAMES:
            return NAMES[word]
        if top := re.fullmatch(r"top_?([1-9][0-9]{0,8})", word):
            return TopK(int(top[1]))
        if (other := OTHER.get(word)) is not None:
            raise ValueError(f"{op}: metric {shown(given)} is not known; it may be {other!r}")
        close = difflib.get_close_matches(word, NAMES, n=2)
        near = f"near it is {' or '.join(map(repr, close))}; " if close else ""
        raise ValueError(f"{op}: metric {shown(given)} is not known; {near}there are {', '.join(NAMES)}")
    if isinstance(given, type):
        try:
            takes = list(inspect.signature(given).parameters.values())
        except ValueError:  # some that are not written in Python tell of none
            takes = []
        needed = any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in takes)
        call = f"{given.__name__}({'...' if needed else ''})"
        raise TypeError(f"{op}: metric must be an object, got the class {given.__name__}: write {call}")
    if hasattr(given, "check_data"):
        return given
    if hasattr(given, "_reductions") and hasattr(given, "compute"):
        return Torchmetrics(given)
    if callable(given):
        return given
    raise TypeError(
        f"{op}: metric must be a name such as 'nll', a Metric such as nk.metrics.NLL(), or a function (outputs, "
        f"targets), got {shown(given)}"
    )
