"""The result of a walk: tidy records, how they came about, and the views derived from them.

Records come first, everything else is a view. This file must not know torch or the compiled
extension; pandas, xarray and matplotlib are imported only by the view that needs them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from noisykernels._util.arguments import check_arguments
from noisykernels._util.optional import optional
from noisykernels._util.text import aligned, covers, printable
from noisykernels.plotting.curves import plot_curves, plot_study
from noisykernels.stats.intervals import Floats, band
from noisykernels.stats.logistic import fit_midpoint
from noisykernels.stats.midpoint import Midpoint, midpoint_cells, restored
from noisykernels.stats.questions import HALF, At, offered, question, typed
from noisykernels.stats.records import Curve, Measured, Meta, Record
from noisykernels.stats.tolerance import fit_tolerance
from noisykernels.study.comparison import Comparison, compare
from noisykernels.study.encoding import codec_of
from noisykernels.study.html_report import report
from noisykernels.study.result import Result

__all__ = ["Study"]

_RECORDS = codec_of(list[Measured], {})


@dataclass(frozen=True, repr=False)
class Study(Result, kind="study"):
    """What a walk returns: records in task-key order (site, level, draw), and `meta`.

    Columns of `to_pandas`: the fields of `Record`; of another measure than a share of rows, those of `Measured`.

    Raises:
        ValueError: a record of an unknown site, or two records of one cell.

    Example:
        >>> meta = Meta(seed=0, noise={"add": 1.0}, levels=(0.1, 1.0, 10.0), draws=(0,), rows=100,
        ...             clean_correct=90, classes=10, sites=("input",), stream_version=1)
        >>> counts = {0.1: 88, 1.0: 50, 10.0: 11}
        >>> records = [Record.counted("input", 0, v, 0, 100, c) for v, c in counts.items()]
        >>> study = Study(records, meta)
        >>> study
        <Study: 1 site x 3 levels x 1 draw, 100 rows, clean 0.9000, 3 records>
        >>> [round(m.level, 2) for m in study.midpoints()]
        [1.0]
    """

    records: Sequence[Record | Measured]
    meta: Meta

    def __post_init__(self) -> None:
        """Bring the records into task-key order and check their keys."""
        records: Any = sorted(self.records, key=lambda r: (r.site_index, r.level, r.draw))
        for r in records:
            if r.site not in self.meta.sites[r.site_index : r.site_index + 1]:
                raise ValueError(f"records: site {r.site_index} {r.site!r} is not in meta.sites")
        for a, b in pairwise(records):
            if a[:4] == b[:4]:
                raise ValueError(f"records: two of site {a.site!r}, level {a.level}, draw {a.draw}")
        object.__setattr__(self, "records", records)

    def _brief(self) -> str:
        m = self.meta
        sizes = ((len(m.sites), "site"), (len(m.levels), "level"), (len(m.draws), "draw"))
        text = " x ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in sizes)
        count = len(self.records)
        return f"{text}, {m.rows} rows, clean {m.clean:.4f}, {count} records{self._stopped()}"

    def _stopped(self) -> str:
        """How many sites a search has left before their intervals were as short as asked for, in words."""
        left = sum(point.get("method") == "stopped" for point in self.meta.midpoints)
        if not left:
            return ""
        most = self.meta.plan.get("most")
        spent = f" within {most:,} evaluations" if isinstance(most, int) else ""
        return f", {left} site{'s' * (left != 1)} stopped{spent}"

    def _cells(self) -> list[tuple[str, int, Floats, Floats, Floats, Floats]]:
        """Per walked site: name, index, levels; values, rows behind them and spreads of these [level, draw], nan if
        missing. Where rows have no number, the value is infinite, on the worse side."""
        found: dict[int, list[Any]] = {}
        for r in self.records:
            found.setdefault(r.site_index, []).append(r)
        out = []
        for index, records in found.items():
            levels = sorted({r.level for r in records})
            draws = sorted({r.draw for r in records})
            row = {v: i for i, v in enumerate(levels)}
            column = {v: i for i, v in enumerate(draws)}
            values = np.full((len(levels), len(draws)), np.nan)
            rows, spread = np.zeros_like(values), np.full_like(values, np.nan)
            for r in records:
                at = row[r.level], column[r.draw]
                values[at] = self._told(r)
                rows[at], spread[at] = r.rows, r.spread
            out.append((records[0].site, index, np.array(levels), values, rows, spread))
        return out

    def _told(self, record: Record | Measured) -> float:
        """The value of a record; infinite, on the worse side, where rows without a number count with no worst one."""
        if record.missing and self.meta.law != "bounded":
            return -math.inf if self.meta.higher_is_better else math.inf
        return record.value

    def curves(self, confidence: float = 0.95) -> list[Curve]:
        """Mean over draws per site and level of what is measured, with the band of `stats.band`.

        The band speaks of the noise's randomness on the given data, level by level: Wilson over
        all rows of all draws for activation noise (safe with any number of draws, never
        collapses), t over draws and never narrower than Wilson's for noise that rows share.

        Args:
            confidence: two-sided, pointwise.

        Returns:
            One curve per site, in execution order; arrays are [level].
        """
        check_arguments(Study.curves, locals())
        return [
            Curve(site, index, levels, *band(
                values, rows, confidence=confidence, independent_rows=self.meta.independent_rows, law=self.meta.law,
                spread=None if self.meta.law == "binary" else spread,
            ), values.shape[1])
            for site, index, levels, values, rows, spread in self._cells()
        ]  # fmt: skip

    def asking(self, at: At) -> Study:
        """The same records, asked another question: where curves cross another value.

        Args:
            at: the question, see `walk`.

        Raises:
            TypeError, ValueError: no question; the study is adaptive, and has looked for another crossing alone.

        Example:
            >>> from noisykernels.stats import Keep
            >>> meta = Meta(seed=0, noise={"add": 1.0}, levels=(0.1, 1.0, 10.0), draws=(0,), rows=100,
            ...             clean_correct=90, classes=10, sites=("input",), stream_version=1)
            >>> counts = zip(meta.levels, (88, 50, 11), strict=True)
            >>> study = Study([Record.counted("input", 0, v, 0, 100, c) for v, c in counts], meta)
            >>> [m.word for m in study.asking(Keep(0.9)).midpoints()]
            ['tolerance']
        """
        check_arguments(Study.asking, locals())
        asked = question("Study.asking", at)
        if asked == self.meta.at:
            return self
        if self.meta.midpoints:
            raise ValueError(
                f"Study.asking: at must be {typed(self.meta.at)}, which the search has looked for alone, got "
                f"{typed(asked)}: walk again with this at= (a store keeps what was evaluated), or on levels and draws"
            )
        plan = {k: v for k, v in self.meta.plan.items() if k != "at"} | ({} if asked == HALF else {"at": str(asked)})
        return replace(self, meta=replace(self.meta, plan=plan))

    def midpoints(
        self, floor: float | Literal["free"] | None = None, confidence: float = 0.95, *, at: At | None = None
    ) -> list[Midpoint]:
        """Midpoint noise level of each site, or its tolerance where another question is asked: what an adaptive walk
        has found, or see `stats.fit_midpoint` (half-way of shares of rows) and `stats.fit_tolerance`.

        Args:
            floor: None: the study's (1 / classes unless said otherwise); "free": fitted per site;
                or an accuracy, or another value.
            confidence: two-sided.
            at: the question, see `walk`; None: the study's.

        Returns:
            One per site, in execution order.

        Raises:
            ValueError: a question that the clean value leaves no answer, or an adaptive study has not looked for; a
                fitted floor of other curves than half-way of shares.
        """
        check_arguments(Study.midpoints, locals())
        if at is not None:
            return self.asking(at).midpoints(floor, confidence)
        m = self.meta
        if m.midpoints and floor is None and confidence == m.midpoints[0]["confidence"]:
            return [restored(found) for found in m.midpoints]
        lo = None if floor == "free" else m.floor if floor is None else float(floor)
        logistic = m.law == "binary" and m.at == HALF
        if floor == "free" and not logistic:
            raise ValueError(f"Study.midpoints: floor='free' is for half-way of shares of rows alone, got {m.metric}")
        if not logistic:
            _ = replace(m, floor=lo).asked_value  # there must be one
        assert m.axis is not None  # set by Meta
        found = []
        for site, index, levels, values, rows, spread in self._cells():
            common: Any = {
                "rows": rows, "clean": m.clean, "floor": lo, "axis": m.axis, "confidence": confidence,
                "independent_rows": m.independent_rows, "rising": m.rising,
            }  # fmt: skip
            if logistic:
                point = fit_midpoint(levels, values, **common)
            else:
                point = fit_tolerance(
                    levels, values, at=m.at, law=m.law, higher_is_better=m.higher_is_better, spread=spread, **common
                )
            found.append(replace(point, site=site, site_index=index))
        return found

    def table(
        self, floor: float | Literal["free"] | None = None, confidence: float = 0.95, *,
        at: At | Sequence[At] | None = None,
    ) -> str:  # fmt: skip
        """The table of midpoints or tolerances as aligned text, one line per site; arguments as `midpoints`.

        "> 10" in place of a level: never so far up to level 10. "< 0.1": already at 0.1. (Where larger is better:
        not even so far at 10; and still better at 0.1.) "?": a search has spent what it may; the interval is
        where the crossing may lie. Where curves never cross, a question that they answer is offered below.

        Args:
            at: several questions give a column of levels each.
        """
        check_arguments(Study.table, locals())
        if isinstance(at, list | tuple):
            return self._table_of_several(floor, confidence, at)
        if at is not None:
            return self.asking(cast(At, at)).table(floor, confidence)
        m = self.meta
        every = self.midpoints(floor, confidence)
        crossing = "half-way" if m.at == HALF else "crossing"
        head = ["#", "site", "floor", m.at.word, f"{confidence:.0%} interval", crossing, "status"]
        lines = [
            [str(p.site_index), p.site, "" if math.isnan(p.floor) else f"{p.floor:.3f}", *midpoint_cells(p)]
            for p in every
        ]
        told = "" if m.at == HALF else f", at={m.at} ({m.metric} {every[0].target:.4g})"
        return "\n".join([self._title(told), *aligned([head, *lines], left=(1, 6)), *self._offers(every, confidence)])

    def _table_of_several(self, floor: Any, confidence: float, asked: Sequence[At]) -> str:
        """Sites and their levels, a column for each question."""
        if not asked:
            raise ValueError("Study.table: at must hold a question, got none")
        each = list(dict.fromkeys(question("Study.table", one) for one in asked))
        columns = [self.midpoints(floor, confidence, at=one) for one in each]
        head = ["#", "site", *map(str, each)]
        lines = [
            [str(same[0].site_index), same[0].site, *(midpoint_cells(p)[0] for p in same)]
            for same in zip(*columns, strict=True)
        ]
        return "\n".join([self._title(""), *aligned([head, *lines], left=(1,))])

    def _title(self, told: str) -> str:
        """What was measured without noise, and how the study looked."""
        m = self.meta
        evaluations = m.plan.get("evaluations")
        spent = f", {evaluations:,} evaluations" if isinstance(evaluations, int) else ""
        return printable(
            f"clean {m.metric} {m.clean:.4f}{self._of_rows()}, "
            + (f"adaptive{spent}{self._stopped()}" if m.midpoints else f"{len(m.levels)} levels x {len(m.draws)} draws")
            + (f" of the {m.parameter}" if m.parameter else "")
            + (", the sites of a group noisy together" if "groups" in m.plan else "")
            + f"{told}, {m.axis} axis, seed {m.seed}"
            + "".join(f"; {line}" for line in covers(m.plan.get("covered", {})))
        )

    def _offers(self, points: Sequence[Midpoint], confidence: float) -> list[str]:
        """Where curves never go as far as asked: a question that more of them answer."""
        m, never = self.meta, sum(p.status == "none" for p in points)
        if not never:
            return []
        curves = self.curves(confidence)
        fallen = [float(np.nanmin(c.high) if m.higher_is_better else np.nanmax(c.low)) for c in curves]
        found = offered(fallen, m.clean, m.floor, m.higher_is_better)
        far = "half-way" if m.at == HALF else f"as far as {m.at}"
        said = f"never {far} at {never} of {len(points)} sites"
        if found is None or found[1] <= sum(p.status in ("ok", "below") for p in points):
            return [said]
        return [f"{said}; at={typed(found[0])} has an answer at {found[1]} of {len(points)}"]

    def _of_rows(self) -> str:
        """How many rows there are: of a share, how many of them count."""
        m = self.meta
        if m.clean_value is None:
            return f" ({m.clean_correct} of {m.rows} rows)"
        return f"{f' {m.unit}' * bool(m.unit)} ({m.rows} rows, {'higher' if m.higher_is_better else 'lower'} is better)"

    def plot(self, ax: Any = None, *, at: At | None = None, **options: Any) -> Any:
        """Picture of the study: curves and profile, or the curves alone on the caller's axes.

        Args:
            ax: matplotlib axes for `plotting.plot_curves`, a pair for `plotting.plot_study`, or None.
            at: the question whose answers are drawn; None: the study's.
            options: passed on.

        Returns:
            The matplotlib Figure.
        """
        if at is not None:
            return self.asking(at).plot(ax, **options)
        if ax is None or isinstance(ax, Sequence | np.ndarray):
            return plot_study(self, axes=ax, **options)
        return plot_curves(self, ax=ax, **options).figure

    def _rows(self) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        return self._kind_of_record._fields, self.records

    @property
    def _kind_of_record(self) -> type[Record] | type[Measured]:
        return Record if self.meta.clean_value is None else Measured

    def _about(self) -> dict[str, Any]:
        found = asdict(self.meta)
        return found if self.meta.clean_value is not None else {k: v for k, v in found.items() if k != "clean_value"}

    def chips(self, limit: float | None = None) -> Any:
        """The spread over draws at each site and level; under noise on weights a draw is a chip.

        Args:
            limit: value at which the yield is told; None: that which is 5 % worse than the clean one.

        Returns:
            A pandas DataFrame: site, site_index, level, chips, mean, std, worst, best, yield.

        Raises:
            ValueError: the study is adaptive: its draws have seen different rows.
        """
        check_arguments(Study.chips, locals())
        pandas = optional("pandas", "table")
        if self.meta.midpoints:
            raise ValueError("chips: an adaptive study has no chips to compare: give walk levels and draws")
        records, better, clean = self.to_pandas(), self.meta.higher_is_better, self.meta.clean
        least = clean * (0.95 if better == (clean > 0) else 1.05) if limit is None else limit
        ends = ("min", "max") if better else ("max", "min")
        records["value"] = [self._told(r) for r in self.records]
        records["good"] = records["value"] >= least if better else records["value"] <= least
        table = records.groupby(["site", "site_index", "level"], as_index=False, sort=False).agg(
            chips=("draw", "count"), mean=("value", "mean"), std=("value", "std"), worst=("value", ends[0]),
            best=("value", ends[1]), good=("good", "mean"),
        )  # fmt: skip
        return pandas.DataFrame(table.rename(columns={"good": "yield"}))

    def to_xarray(self) -> Any:
        """The records as an xarray Dataset over (site, level, draw).

        Counts and values are float (nan where a cell has no record), status is text ("" there).
        """
        xarray = optional("xarray", "table")
        names = {r.site_index: r.site for r in self.records}
        keys: dict[str, list[Any]] = {
            "site_index": sorted(names),
            "level": sorted({r.level for r in self.records}),
            "draw": sorted({r.draw for r in self.records}),
        }
        places = {name: {v: i for i, v in enumerate(values)} for name, values in keys.items()}
        shape = tuple(len(v) for v in keys.values())
        fields = [name for name in self._kind_of_record._fields if name not in ("site", *keys, "status")]
        data: dict[str, Any] = {name: np.full(shape, np.nan) for name in fields}
        data["status"] = np.full(shape, "", dtype=object)
        for r in self.records:
            at = tuple(places[name][getattr(r, name)] for name in keys)
            for name, values in data.items():
                values[at] = getattr(r, name)
        m = self.meta
        return xarray.Dataset(
            {name: (("site", "level", "draw"), values) for name, values in data.items()},
            coords={
                "site": [names[i] for i in keys["site_index"]],
                "site_index": ("site", keys["site_index"]),
                "level": keys["level"],
                "draw": keys["draw"],
            },
            attrs={"seed": m.seed, "clean": m.clean, "floor": m.floor, "axis": m.axis,
                   "stream_version": m.stream_version},
        )  # fmt: skip

    def report(self, path: str | os.PathLike[str], title: str | None = None, *, at: At | None = None) -> Path:
        """Write one HTML file that shows and explains the study, or what it answers `at`; see `study.report`."""
        check_arguments(Study.report, locals())
        return report(self if at is None else self.asking(at), path, title)

    def compare(self, other: Study, names: tuple[str, str] = ("a", "b"), at: At | None = None) -> Comparison:
        """The midpoints of this study (a) and of another one (b), site by site; see `study.compare`."""
        check_arguments(Study.compare, locals())
        return compare(self, other, names, at)

    def _body(self) -> dict[str, Any]:
        return {
            "meta": self._about(),
            "columns": list(self._kind_of_record._fields),
            "records": _RECORDS.write(self.records) if self._version > 1 else [list(r) for r in self.records],
        }

    @property
    def _version(self) -> int:
        """Other measures than shares of rows came with the second version of the file."""
        return 1 if self.meta.clean_value is None else 2

    @classmethod
    def _of(cls, body: Mapping[str, Any]) -> Study:
        meta = Meta(**body["meta"])
        for midpoint in meta.midpoints:
            restored(midpoint)
        kind = Record if meta.clean_value is None else Measured
        if body["columns"] != list(kind._fields):
            raise ValueError(f"columns are {body['columns']}")
        records = [Record(*r) for r in body["records"]] if kind is Record else _RECORDS.read(body["records"])
        return cls(records, meta)
