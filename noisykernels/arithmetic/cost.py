"""What a multiply-accumulate unit costs in a number format: delay, area, energy; from a table, or from a stand-in."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import shown
from noisykernels._util.optional import optional
from noisykernels.arithmetic.formats import FloatFormat, Format, as_format, format_of

__all__ = ["Cost", "CostModel"]


_TABLE = "CostModel: table must be a dict, a DataFrame or the path of a CSV file"
_WIDTH = re.compile(r"M\d+|fixed\d+")


class Cost(NamedTuple):
    """Of one multiply-accumulate unit, in any units; energy of one operation, nan where it is not known."""

    delay: float
    area: float
    energy: float = math.nan


def stand_in(fmt: Format) -> Cost:
    """The costs of a unit without a table; see `CostModel`."""
    if isinstance(fmt, FloatFormat):
        n = fmt.mantissa + 1
        area, delay = n * n + 10 * n + fmt.exponent, 2 + math.log2(n)
    else:
        n = fmt.bits - 1
        area, delay = n * n + n, 1 + math.log2(n)
    return Cost(delay, area, area**0.72)


class CostModel:
    r"""How much faster and how much less energy a multiply-accumulate unit is in a number format than in float32.

    Units fill a fixed area and run at their own clock, so

    .. math:: speedup = \frac{delay_{32}}{delay} \cdot \frac{area_{32}}{area}, \qquad
        saving = \frac{energy_{32}}{energy}

    Without a table it is a stand-in, since the published delays and areas (synthesis in 28 nm) are shown in figures
    only. With *n* bits that are multiplied, M + 1 or L + R:

    .. math::
        area &= n^2 + 10 n + E, \quad delay = 2 + \log_2 n \qquad\text{(floating point)} \\
        area &= n^2 + n, \quad delay = 1 + \log_2 n \qquad\text{(fixed point)} \\
        energy &= area^{0.72}

    an array multiplier with the shifters of a floating-point adder, or a plain adder, behind a tree. The constants are
    ours: they put the two published points (M7E6: 7.2 times the speed at 3.4 times less energy, M8E6: 5.7 and 3.0) at
    7.2 and 3.4, 5.9 and 3.0. Nothing else of them is measured: give a table of your technology for numbers to rely on.

    Args:
        table: None: the stand-in. Else what each unit costs: a dict from formats to (delay, area) or (delay, area,
            energy); a pandas DataFrame, or a CSV file, with columns ``format``, ``delay``, ``area`` and perhaps
            ``energy``. A format is a name (`as_format`), or a width for all that have no row of their own: ``"M7"``
            for floating point with 7 mantissa bits, ``"fixed16"`` for fixed point of 16 bits with the sign.
        reference: what is compared with, a format.

    Raises:
        ValueError: a row that is no format, or not positive numbers; no cost of the reference.
        OSError: no such file.

    Source: Hill et al. 2018 (arXiv 1808.02513), section 3.2.

    Example:
        >>> cost = CostModel()
        >>> [(round(cost.speedup(f), 1), round(cost.saving(f), 1)) for f in ("M7E6", "M8E6", "L4R11")]
        [(7.2, 3.4), (5.9, 3.0), (4.6, 2.4)]
        >>> CostModel({"fp32": (2.0, 4.0), "M7": (1.0, 1.0)}).speedup("M7E5")
        8.0
    """

    def __init__(
        self, table: Mapping[Any, Sequence[float]] | str | os.PathLike[str] | Any = None, *, reference: Any = "fp32"
    ) -> None:
        check_arguments(CostModel.__init__, locals())
        self.reference = format_of("CostModel", "reference", reference)
        self.table = None if table is None else {_key(k): _cost(k, v) for k, v in _rows(table)}
        self.cost(self.reference)

    def cost(self, fmt: str | Format | torch.dtype) -> Cost:
        """Delay, area and energy of a format.

        Raises:
            ValueError: the table has no row for it.
        """
        check_arguments(CostModel.cost, locals())
        made = as_format(fmt)
        if self.table is None:
            return stand_in(made)
        width = f"M{made.mantissa}" if isinstance(made, FloatFormat) else f"fixed{made.bits}"
        for key in (made.layout, width):
            if key in self.table:
                return self.table[key]
        raise ValueError(f"CostModel: table must have a row for {made.layout} or {width}, got {', '.join(self.table)}")

    def knows(self, fmt: str | Format | torch.dtype) -> bool:
        """Whether there is a cost of a format."""
        check_arguments(CostModel.knows, locals())
        try:
            self.cost(fmt)
        except ValueError:
            return False
        return True

    def speedup(self, fmt: str | Format | torch.dtype) -> float:
        """How much faster than the reference at the same area."""
        check_arguments(CostModel.speedup, locals())
        one, other = self.cost(self.reference), self.cost(fmt)
        return one.delay / other.delay * (one.area / other.area)

    def saving(self, fmt: str | Format | torch.dtype) -> float:
        """How many times less energy than the reference takes; nan where it is not known."""
        check_arguments(CostModel.saving, locals())
        return self.cost(self.reference).energy / self.cost(fmt).energy

    def to_pandas(self, formats: Iterable[str | Format | torch.dtype]) -> Any:
        """A pandas DataFrame: format, bits, delay, area, energy, speedup, saving."""
        check_arguments(CostModel.to_pandas, locals())
        made = [as_format(f) for f in formats]
        rows = [(str(f), f.bits, *self.cost(f), self.speedup(f), self.saving(f)) for f in made]
        names = ["format", "bits", *Cost._fields, "speedup", "saving"]
        return optional("pandas", "table").DataFrame(rows, columns=names)

    def __repr__(self) -> str:
        return f"CostModel({'' if self.table is None else f'<{len(self.table)} rows>'})"


def _rows(table: Any) -> list[tuple[Any, Any]]:
    """(format, numbers) of each row of a table."""
    if isinstance(table, Mapping):
        return list(table.items())
    if isinstance(table, str | os.PathLike):
        if not Path(table).name or "\0" in str(table):
            raise ValueError(f"{_TABLE}, got {shown(table)}")
        with Path(table).open(newline="") as file:
            found: list[dict[str, Any]] = list(csv.DictReader(file, skipinitialspace=True))
    elif hasattr(table, "to_dict"):
        named = table if "format" in table.columns else table.rename_axis("format").reset_index()
        found = named.to_dict("records")
    else:
        raise ValueError(f"{_TABLE}, got {shown(table)}")
    names = ("format", "delay", "area")
    if not found or any(name not in found[0] for name in names):
        raise ValueError(
            f"CostModel: table must have columns {', '.join(names)}, got {', '.join(found[0] if found else ())}"
        )
    return [(r["format"], [r[n] for n in (*names[1:], "energy") if n in r]) for r in found]


def _key(fmt: Any) -> str:
    if isinstance(fmt, str) and _WIDTH.fullmatch(fmt):
        return fmt
    return as_format(fmt).layout


def _cost(fmt: Any, numbers: Any) -> Cost:
    try:
        values = [float(v) for v in numbers]
    except (TypeError, ValueError):
        values = []
    energy = values[2:] or [math.nan]
    if not 2 <= len(values) <= 3 or not all(0 < v < math.inf for v in values[:2]) or energy[0] <= 0:
        raise ValueError(f"CostModel: costs of {fmt} must be positive: delay, area and perhaps energy, got {numbers!r}")
    return Cost(values[0], values[1], energy[0])
