"""Two studies side by side: at which sites does one stand more noise than the other, and how surely.

Only midpoints, or tolerances, are compared: how they came about, by a grid or a search, does not matter. This file must
not know torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from noisykernels._util.arguments import check_arguments
from noisykernels._util.text import aligned, printable
from noisykernels.plotting.comparison import plot_compare
from noisykernels.stats.midpoint import Midpoint, midpoint_cells
from noisykernels.stats.questions import HALF, At, Drop, Value, question, typed
from noisykernels.stats.records import Meta
from noisykernels.stats.views import StudyLike
from noisykernels.study.result import Result

__all__ = ["Comparison", "Pair", "compare"]


Verdict = Literal["higher", "lower", "not told apart", "only in a", "only in b"]

# field of Meta: what a reader calls it. Where two studies differ in one of these, the midpoints may for that reason.
ASKED = {
    "model": "model", "data": "data", "noise": "noise", "seed": "seed", "rows": "number of rows", "target": "target",
    "metric": "metric", "floor": "floor", "axis": "axis", "stream_version": "stream version",
}  # fmt: skip


class Pair(NamedTuple):
    """One site in both studies. ratio: midpoint (or tolerance) of b over that of a, nan where one is only a bound."""

    site: str
    a: Midpoint | None
    b: Midpoint | None
    ratio: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result, kind="comparison"):
    """What `compare` returns.

    Columns of `to_pandas`: site; a, a_low, a_high, a_status, the midpoint or tolerance of a (nan where it is only a
    bound), and those of b; ratio, low, high, verdict.

    Args:
        pairs: the sites of a in execution order, then those that only b has.
        names: what a and b are called.
        clean: clean accuracy of a and b.
        differences: what else the two studies differ in, a line each.
        metric: name of what was measured.
        at: the question that both answer, as text.
    """

    pairs: list[Pair]
    names: tuple[str, str]
    clean: tuple[float, float]
    differences: list[str]
    metric: str = "accuracy"
    at: str = "half"

    @property
    def word(self) -> str:
        """What the levels compared are: midpoint or tolerance."""
        return question("Comparison", self.at).word

    def table(self) -> str:
        """Both midpoints (or tolerances) and their ratio as aligned text, a line for each site, and what else differs.

        "> 10" in place of a midpoint: never half-way up to level 10. "< 0.1": already at 0.1.
        """
        a, b = self.names
        lines = [["site", a, b, f"{b} / {a}", "95% interval", "verdict"]]
        for p in self.pairs:
            points = ["" if m is None else midpoint_cells(m)[0] for m in (p.a, p.b)]
            lines.append([p.site, *points, *_ratio_cells(p), _said(p, self.names)])
        head = f"clean {self.metric}: {a} {self.clean[0]:.4f}, {b} {self.clean[1]:.4f}"
        if self.at != str(HALF):
            head += f"; {self.word} levels, at={self.at}"
        tail = [f"the studies differ: {difference}" for difference in self.differences]
        return "\n".join([printable(head), *aligned(lines, left=(0, 5)), *map(printable, tail)])

    def plot(self, ax: Any = None) -> Any:
        """Picture of both profiles on the caller's axes or a new figure (see `plotting.plot_compare`); the Figure."""
        return plot_compare(self, ax).figure

    def _rows(self) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        sides = [[side, f"{side}_low", f"{side}_high", f"{side}_status"] for side in "ab"]
        names = ["site", *sides[0], *sides[1], "ratio", "low", "high", "verdict"]
        nothing = (math.nan, math.nan, math.nan, "")
        cells = [[nothing if m is None else (m.level, m.low, m.high, m.status) for m in (p.a, p.b)] for p in self.pairs]
        return names, [
            (p.site, *a, *b, p.ratio, p.low, p.high, p.verdict) for p, (a, b) in zip(self.pairs, cells, strict=True)
        ]

    def _brief(self) -> str:
        told = sum(p.verdict in ("higher", "lower") for p in self.pairs)
        return f"{self.names[0]} and {self.names[1]} at {len(self.pairs)} sites, {told} told apart"

    def _size(self) -> tuple[float, float]:
        return 1.8 + max(4.5, 0.36 * len(self.pairs)), 4.6


def compare(
    a: StudyLike, b: StudyLike, names: Sequence[str] = ("a", "b"), at: At | None = None
) -> Comparison:  # fmt: skip
    """The midpoints or tolerances of two studies, site by site, and the ratio of b's to a's with a 95 % interval.

    ``ratio = b / a``; the errors of the two are taken as independent and add in quadrature on the log axis:
    ``ln(high / ratio)^2 = ln(b.high / b.level)^2 + ln(a.level / a.low)^2``, and likewise downwards. (Studies of one
    model with one seed share their noise: the interval is then longer than it had to be.) Where one midpoint is only a
    bound (see `Midpoint.status`) the ratio is nan and its interval is what the bounds allow. Sites are matched by name.

    Args:
        a, b: the studies.
        names: what to call them.
        at: the question that both answer, see `walk`; None: that of a.

    Returns:
        `Comparison`; a verdict is "higher" (b stands more noise at this site) or "lower" where the interval of the
        ratio excludes 1, else "not told apart".

    Raises:
        ValueError: not two different names; no site in both; a clean value that leaves the question no answer; studies
            of different measures, unless the question is one of shares ("half", `Keep`, `Ratio`).

    Example:
        >>> from noisykernels.stats import Record
        >>> from noisykernels.study import Study
        >>> def study(fallen, seed):
        ...     meta = Meta(seed=seed, noise={"add": 1.0}, levels=(0.1, 1.0, 10.0, 100.0), draws=(0,), rows=1000,
        ...                 clean_correct=900, classes=10, sites=("input",), stream_version=1)
        ...     return Study([Record.counted("input", 0, v, 0, 1000, c)
        ...                   for v, c in zip(meta.levels, fallen, strict=True)], meta)
        >>> both = compare(study((880, 500, 110, 100), 0), study((890, 880, 500, 110), 1), ("clean", "noisy"))
        >>> print(both.table())
        clean accuracy: clean 0.9000, noisy 0.9000
        site   clean  noisy  noisy / clean   95% interval  verdict
        ---------------------------------------------------------------
        input  0.995  9.948          9.998  8.42 .. 11.82  noisy higher
        the studies differ: seed: 0 and 1
    """
    check_arguments(compare, locals())
    if len(names) != 2 or names[0] == names[1]:
        raise ValueError(f"compare: names must be two that differ, got {list(names)}")
    asked = a.meta.at if at is None else question("compare", at)
    a, b = a.asking(asked), b.asking(asked)
    ours, theirs = ({m.site: m for m in study.midpoints()} for study in (a, b))
    if not ours.keys() & theirs.keys():
        raise ValueError(f"compare: the studies have no site in common: {list(ours)} and {list(theirs)}")
    pairs = [_pair(site, ours.get(site), theirs.get(site)) for site in {**ours, **theirs}]
    metric = " and ".join(dict.fromkeys((a.meta.metric, b.meta.metric)))
    if a.meta.metric != b.meta.metric and isinstance(asked, Drop | Value):
        raise ValueError(
            f"compare: studies must be of one measure for at={typed(asked)}, which is in its unit, got {metric}; ask "
            "for shares, such as 'half', nk.Keep(0.9)"
        )
    return Comparison(
        pairs, (names[0], names[1]), (a.meta.clean, b.meta.clean), _differences(a.meta, b.meta), metric, str(asked)
    )


def _pair(site: str, a: Midpoint | None, b: Midpoint | None) -> Pair:
    if a is None or b is None:
        return Pair(site, a, b, math.nan, 0.0, math.inf, "only in b" if a is None else "only in a")
    if a.status == b.status == "ok" and min(a.level, b.level) > 0:
        ratio = b.level / a.level
        low = ratio * math.exp(-math.hypot(_log(b.level, b.low), _log(a.high, a.level)))
        high = ratio * math.exp(math.hypot(_log(b.high, b.level), _log(a.level, a.low)))
    else:
        ratio, low, high = math.nan, _over(b.low, a.high), _over(b.high, a.low)
    verdict: Verdict = "higher" if low > 1 else "lower" if high < 1 else "not told apart"
    return Pair(site, a, b, ratio, low, high, verdict)


def _log(above: float, below: float) -> float:
    """ln(above / below) of an interval's end; inf where it is open."""
    return math.log(above / below) if below > 0 and math.isfinite(above) else math.inf


def _over(x: float, y: float) -> float:
    """x / y of bounds, 0 and inf among them."""
    return 0.0 if x == 0 or y == math.inf else x / y if y > 0 and x < math.inf else math.inf


def _ratio_cells(p: Pair) -> list[str]:
    """ratio and interval of a line of the table; "> 2" for an interval that is open above."""
    if p.low == 0 or p.high == math.inf:
        interval = "" if p.low == 0 and p.high == math.inf else f"< {p.high:.4g}" if p.low == 0 else f"> {p.low:.4g}"
    else:
        interval = f"{p.low:.4g} .. {p.high:.4g}"
    return ["" if math.isnan(p.ratio) else f"{p.ratio:.4g}", interval]


def _said(p: Pair, names: tuple[str, str]) -> str:
    """The verdict with the names in it."""
    only = {"only in a": f"only in {names[0]}", "only in b": f"only in {names[1]}"}
    return only.get(p.verdict, p.verdict if p.verdict == "not told apart" else f"{names[1]} {p.verdict}")


def _differences(a: Meta, b: Meta) -> list[str]:
    """What the studies were asked that is not the same."""
    found = []
    for name, word in ASKED.items():
        x, y = getattr(a, name), getattr(b, name)
        if x == y:
            continue
        if name == "noise":  # only what differs of it
            x, y = (", ".join(f"{k} {v.get(k)}" for k in {**x, **y} if x.get(k) != y.get(k)) for v in (x, y))
        found.append(f"{word}: {x} and {y}")
    return found
