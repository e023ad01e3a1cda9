"""Good calls of measures and their laws, each with all arguments; see `good_calls`."""

from __future__ import annotations

from good_calls import Good

import noisykernels as nk

METRICS: Good = {
    nk.metrics.Bounded: lambda: dict(low=0.0, high=1.0, worst=0.0),
    nk.metrics.Sums: lambda: dict(width=3, block=250),
}
