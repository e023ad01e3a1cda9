"""What a result must have to be drawn: pictures lie below the results, and know no more of them than this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from noisykernels.stats.intervals import Floats
from noisykernels.stats.midpoint import Midpoint
from noisykernels.stats.questions import At
from noisykernels.stats.records import Curve, Measured, Meta, Record
from noisykernels.stats.votes import VoteCurve

__all__ = [
    "ChipsLike",
    "ComparisonLike",
    "LayerFormatsLike",
    "OrderStudyLike",
    "PredictorLike",
    "StudyLike",
    "SweepLike",
    "VotesLike",
]


class StudyLike(Protocol):
    """Of a `Study`."""

    @property
    def records(self) -> Sequence[Record | Measured]: ...

    @property
    def meta(self) -> Meta: ...

    def curves(self, confidence: float = 0.95) -> list[Curve]: ...

    def to_pandas(self) -> Any: ...

    def asking(self, at: At) -> StudyLike: ...

    def midpoints(
        self, floor: float | Literal["free"] | None = None, confidence: float = 0.95, *, at: At | None = None
    ) -> list[Midpoint]: ...


class PairLike(Protocol):
    """Of one site in a comparison."""

    @property
    def site(self) -> str: ...

    @property
    def a(self) -> Midpoint | None: ...

    @property
    def b(self) -> Midpoint | None: ...

    @property
    def verdict(self) -> str: ...


class ComparisonLike(Protocol):
    """Of a `Comparison`."""

    @property
    def pairs(self) -> Sequence[PairLike]: ...

    @property
    def names(self) -> tuple[str, str]: ...

    @property
    def word(self) -> str: ...


class VotesLike(Protocol):
    """Of `Votes`."""

    @property
    def curves(self) -> Mapping[str, VoteCurve]: ...

    @property
    def metric(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def share(self) -> bool: ...

    @property
    def clean(self) -> float: ...

    @property
    def rows(self) -> int: ...

    @property
    def draws(self) -> tuple[int, ...]: ...


class SweepLike(Protocol):
    """Of a `Sweep`; its results have a format, r2, normalised and speedup."""

    @property
    def metric(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def rows(self) -> int: ...

    @property
    def target(self) -> float: ...

    @property
    def results(self) -> Sequence[Any]: ...

    def front(self) -> Sequence[Any]: ...

    def fastest(self, target: float) -> Any: ...


class LayerFormatsLike(Protocol):
    """Of `LayerFormats`; its formats have a point, bits, a layout and a string."""

    @property
    def metric(self) -> str: ...

    @property
    def formats(self) -> Mapping[str, Any]: ...

    @property
    def macs(self) -> Mapping[str, int]: ...

    @property
    def normalised(self) -> float: ...

    @property
    def speedup(self) -> float: ...


class ChipsLike(Protocol):
    """Of `Chips`."""

    @property
    def metric(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def higher_is_better(self) -> bool: ...

    @property
    def share(self) -> bool: ...

    @property
    def values(self) -> Floats: ...

    @property
    def clean(self) -> float: ...

    @property
    def rows(self) -> int: ...

    def yield_at(self, limit: float) -> tuple[float, float, float]: ...


class LayerOrderLike(Protocol):
    """Of one layer in a study of orders."""

    @property
    def name(self) -> str: ...

    @property
    def steps(self) -> int: ...

    @property
    def quantiles(self) -> Floats: ...


class OrderStudyLike(Protocol):
    """Of an `OrderStudy`."""

    @property
    def metric(self) -> str: ...

    @property
    def layers(self) -> Sequence[LayerOrderLike]: ...

    @property
    def values(self) -> Floats: ...

    @property
    def orders(self) -> Mapping[str, float]: ...


class PredictorLike(Protocol):
    """Of a `LinearPredictor`."""

    @property
    def slope(self) -> float: ...

    @property
    def intercept(self) -> float: ...

    @property
    def correlation(self) -> float: ...
