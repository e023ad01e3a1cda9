"""Good calls of measures and their laws, each with all arguments; see `good_calls`."""

from __future__ import annotations

from typing import Any

from good_calls import Good
from measure_cases import Hits, mae

import noisykernels as nk


def of_classes(**more: Any) -> dict[str, Any]:
    return dict(ignore_index=-100, dim=-1) | more


def given(**more: Any) -> dict[str, Any]:
    """Of a user's function."""
    return dict(function=mae, higher_is_better=False, name="mae", unit="", floor_value=None, against="labels") | more


METRICS: Good = {
    nk.metrics.Bounded: lambda: dict(low=0.0, high=1.0, worst=0.0),
    nk.metrics.Sums: lambda: dict(width=3, block=250),
    nk.metrics.TopK: lambda: dict(k=5),
    nk.metrics.NLL: of_classes,
    nk.metrics.Perplexity: of_classes,
    nk.metrics.TokenAccuracy: of_classes,
    nk.metrics.Brier: of_classes,
    nk.metrics.MeanIoU: of_classes,
    nk.metrics.F1: of_classes,
    nk.metrics.ECE: lambda: of_classes(bins=15),
    nk.metrics.AUROC: lambda: dict(bins=100),
    nk.metrics.MultiLabel: lambda: dict(of="exact"),
    nk.metrics.MSE: lambda: dict(against="labels"),
    nk.metrics.RelativeMSE: lambda: dict(against="labels", decibels=False),
    nk.metrics.Weighted: lambda: dict(metric="nll", weights="care"),
    nk.metrics.Cosine: lambda: dict(against="labels"),
    nk.metrics.ByRow: given,
    nk.metrics.WholePass: given,
    nk.metrics.Torchmetrics: lambda: dict(metric=Hits(), name="hits", higher_is_better=True),
}
