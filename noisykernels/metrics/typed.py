"""A measure as one types it in Python."""

from __future__ import annotations

from noisykernels.metrics.base import Metric
from noisykernels.metrics.classes import TopK
from noisykernels.metrics.functions import ByRow, WholePass
from noisykernels.metrics.names import NAMES
from noisykernels.metrics.sums import Torchmetrics
from noisykernels.metrics.weighted import Weighted

__all__ = ["typed"]

OWN = __name__.rpartition(".")[0]


def typed(metric: Metric) -> str | None:
    """A measure as one types it in Python; None: it is made of a user's own code, or another library's.

    Example:
        >>> from noisykernels.metrics import NLL
        >>> typed(NLL()), typed(NLL(ignore_index=0)), typed(Weighted(TopK(3), "mask"))
        ("'nll'", 'nk.metrics.NLL(ignore_index=0, dim=None)', "nk.metrics.Weighted('top3', 'mask')")
    """
    if not type(metric).__module__.startswith(OWN) or isinstance(metric, ByRow | WholePass | Torchmetrics):
        return None
    if isinstance(metric, Weighted):
        inner = typed(metric.metric)
        return None if inner is None else f"nk.metrics.Weighted({inner}, {metric.key!r})"
    by_name = isinstance(metric, TopK) or repr(NAMES.get(metric.name)) == repr(metric)
    return repr(metric.name) if by_name else f"nk.metrics.{metric!r}"
