"""A log of what is measured in the course of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from noisykernels._util.arguments import check_arguments
from noisykernels._util.optional import optional

__all__ = ["MetricLog"]


# --------------------------------------------------------------------------------------------------------------- log


class MetricLog:
    """Keeps what given measures say after each epoch; an `on_epoch` of `train`, or for a loop of your own.

    Args:
        **measures: functions without arguments that return records (named tuples), by name.

    Raises:
        TypeError: a measure that cannot be called.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 3))
        >>> log = MetricLog(weights=lambda: nk.training.weight_statistics(model))
        >>> for epoch in (1, 2):  # or train(..., on_epoch=log)
        ...     log({"epoch": epoch})
        >>> [(record["epoch"], record["weight"]) for record in log.records["weights"]]
        [(1, '0.weight'), (2, '0.weight')]
    """

    def __init__(self, **measures: Callable[[], Iterable[Any]]) -> None:
        for name, measure in measures.items():
            if not callable(measure):
                raise TypeError(f"MetricLog: {name} must be a function that measures, got {type(measure).__name__}")
        self.measures = measures
        self.records: dict[str, list[dict[str, Any]]] = {name: [] for name in measures}

    def __call__(self, epoch: Mapping[str, float]) -> None:
        """Measures; `epoch["epoch"]` says when that is."""
        for name, measure in self.measures.items():
            self.records[name] += [{"epoch": epoch["epoch"], **record._asdict()} for record in measure()]

    def to_pandas(self, name: str) -> Any:
        """The records of one measure as a table: a row for each epoch and site or weight.

        Raises:
            KeyError: no such measure.
            ModuleNotFoundError: pandas is not installed.
        """
        check_arguments(MetricLog.to_pandas, locals())
        if name not in self.records:
            raise KeyError(f"MetricLog.to_pandas: expected one of {', '.join(self.records)}, got {name!r}")
        return optional("pandas", "table").DataFrame(self.records[name])
