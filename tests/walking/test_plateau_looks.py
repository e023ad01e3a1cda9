"""How often levels are looked at before they are settled: on which rows, how many, and how often that errs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from made_curves import SITE
from scipy import stats

from noisykernels._engine.request import Advance, Answer, Request, unheard
from noisykernels.metrics.accuracy import ACCURACY
from noisykernels.walking.cells import Cells
from noisykernels.walking.plateaus import ERROR, GLANCE, ROWS, _steps, settled

CLEAN, FLOOR, SHARE, TOTAL = 0.9, 0.1, 0.03, 20_000
NEAR = SHARE * (CLEAN - FLOOR)


class Rates:
    """Rows of which so many are right at each level: those without noise are changed, or all guess."""

    def __init__(self, seed: int, worse: Sequence[float] | None = None, right: Sequence[float] | None = None) -> None:
        self.rng = np.random.default_rng(seed)
        self.clean = (np.arange(TOTAL) % 10 < 10 * CLEAN).astype(np.int8)
        self.rng.shuffle(self.clean)
        self.of = worse if right is None else right
        self.guess = right is not None
        self.asked: list[Request] = []

    def answers(self, requests: Sequence[Request], advance: Advance = unheard) -> list[Answer]:
        self.asked += requests
        found = []
        for r in requests:
            u = self.rng.random((len(r.levels), len(r.draws), r.rows))
            rate = np.array([self.of[int(v) - 1] for v in r.levels])[:, None, None]
            before = self.clean[r.start : r.end]
            found.append(((u < rate) if self.guess else np.where(u < rate, 0, before)).astype(np.int8))
        return found


def settle(made: Rates, draws: int = 5) -> tuple[Cells, list[Request]]:
    cells = Cells([SITE], 1, made.clean, FLOOR, ACCURACY, TOTAL)
    levels = tuple(float(k + 1) for k in range(len(made.of)))
    grid = [Request(SITE, levels, tuple(range(3, 3 + draws)), TOTAL)]
    return cells, settled(grid, [0.0], made, cells, SHARE, unheard)


@pytest.mark.parametrize(
    ("rates", "alarms"),
    # Beyond a plateau by a hair. Near the clean value two intervals make one, which errs less often.
    [(dict(right=[FLOOR + NEAR]), 0.025), (dict(right=[FLOOR - NEAR]), 0.025), (dict(worse=[NEAR / CLEAN]), 0.025)],
    ids=["above the floor", "below the floor", "below the clean value"],
)
def test_levels_off_a_plateau_are_rarely_settled(rates: dict[str, Any], alarms: float) -> None:
    """At most so often that half of the error allowed, that of one end, would be exceeded once in a million tests."""
    many = {name: 3000 * rate for name, rate in rates.items()}
    cells, left = settle(Rates(5, **many))
    assert len(cells.records(0)) // 5 == 3000 - len(left[0].levels)
    assert len(cells.records(0)) // 5 <= stats.binom.ppf(1 - 1e-6, 3000, alarms)
    assert ERROR / 2 == alarms


@pytest.mark.parametrize("kind", ["worse", "right"])
def test_what_is_said_of_settled_levels_is_true(kind: str) -> None:
    """Levels on a plateau, or just off it: of those settled, what is reported lies as near to the truth as it says, and
    the interval of all draws together holds it."""
    rng = np.random.default_rng(1)
    rates = rng.uniform(0, 1.2 * NEAR, 1500)
    rates = rates / CLEAN if kind == "worse" else FLOOR + rates
    cells, _ = settle(Rates(7, **{kind: rates.tolist()}))
    truth = CLEAN * (1 - rates) if kind == "worse" else rates
    by_level: dict[float, list[Any]] = {}
    for record in cells.records(0):
        by_level.setdefault(record.level, []).append(record)
        assert record.status == "settled" and record.low <= record.accuracy <= record.high
    assert len(by_level) > 500
    held = [r.low <= truth[int(r.level) - 1] <= r.high for r in cells.records(0)]
    assert sum(held) >= stats.binom.ppf(1e-6, len(held), 0.95)
    plateau = CLEAN if kind == "worse" else FLOOR
    wrong = sum(abs(truth[int(v) - 1] - plateau) > NEAR for v in by_level)
    assert wrong <= stats.binom.ppf(1 - 1e-6, len(by_level), 0.025)


def test_a_level_gets_rows_as_it_needs_them() -> None:
    """A few on the slope, 2,000 well on a plateau, four times as many near its edge, unless these cannot tell."""
    rates = [0.5, 0.0, 0.8 * NEAR / CLEAN, 1.3 * NEAR / CLEAN]
    counts = []
    for rate in rates:
        cells, left = settle(Rates(3, worse=[rate]))
        counts.append((cells.evaluations[0], [r.rows for r in cells.records(0)][:1], bool(left)))
    assert counts == [(GLANCE, [], True), (ROWS, [400], False), (4 * ROWS, [1600], False), (ROWS, [], True)]
    together, left = settle(Rates(3, worse=rates))
    assert together.evaluations[0] == sum(count for count, *_ in counts)
    assert [r.levels for r in left] == [(1.0, 4.0)] and left[0].rows == TOTAL and len(left[0].draws) == 5


@pytest.mark.parametrize(
    ("rows", "draws"), [(3, 4), (4, 4), (700, 3), (2000, 1), (10_000, 1), (10_000, 7), (60_000, 5)]
)
def test_looks_see_no_row_twice(rows: int, draws: int) -> None:
    ids = tuple(range(draws))
    steps = _steps(rows, ids)
    seen = np.zeros(rows, int)
    for step in steps:
        for j in ids:
            part = seen[step.start + j * step.stride :][: step.rows]
            assert len(part) == step.rows
            part += 1
        assert seen.max() == 1 and seen.sum() == step.seen
    assert not steps or steps[-1].seen <= max(ROWS, rows * draws // 2)
    assert (rows < draws) == (not steps)
    looks = [step.confidence for step in steps if step.confidence is not None]
    assert sum(1 - confidence for confidence in looks) == pytest.approx(ERROR if looks else 0)
    assert len(looks) == {700: 1, 2000: 1, 60_000: 3}.get(rows, 0 if not steps else 1 if draws < 2 or rows < 10 else 2)
