"""What a measurement asks, how its answers are put together, and that its errors are those it states."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_curves import SITE
from scipy import stats

from noisykernels._engine.request import Request
from noisykernels.stats.regression import paired_error
from noisykernels.walking.fall import fall_of_rows
from noisykernels.walking.measuring import BESIDE, LEAST, RESERVE, around, measured, needed

LEVELS = (0.5, 1.0, 2.0)


def code(r: Request) -> np.ndarray:
    """An answer that says of which level, draw and row each number is."""
    level, draw, row = np.meshgrid(r.levels, r.draws, range(r.start, r.end), indexing="ij")
    return 1e13 * level + 1e6 * draw + row


@pytest.mark.parametrize("total", [1, 50, 355, 400, 1000, 3000, 50_000])
@pytest.mark.parametrize("want", [1, 300, 900, 4000, 20_000, 100_000])
def test_a_measurement_is_asked_once_and_put_together(total: int, want: int) -> None:
    one = Request(SITE, (), (7,), total)
    requests = around(one, LEVELS, want, 400, LEAST)
    seen = [(v, d, n) for r in requests for v in r.levels for d in r.draws for n in range(r.start, r.end)][: 10**6]
    assert len(set(seen)) == len(seen) and min(d for _, d, _ in seen) == 7
    got = measured(requests, [code(r) for r in requests])
    rows = min(total, max(400, want))
    assert got.rows == rows and got.first.size + got.rest.size >= want and got.beside.shape[1] >= 2
    assert got.beside.shape[0] == 3 and got.beside[0].size >= min(want / BESIDE, 2 * total)
    whole = np.arange(rows)
    assert (got.first % 1e6 == whole[: got.first.shape[1]]).all()
    assert (got.rest % 1e6 == whole[got.first.shape[1] :]).all()
    assert (got.first // 1e13 == 1).all() and (got.rest // 1e13 == 1).all()
    assert (got.beside[:, 0, 0] // 1e13 == np.array(LEVELS) // 1).all()
    draws = got.first[:, 0] % 1e13 // 1e6
    assert draws.tolist() == list(range(7, 7 + len(draws))) and len(draws) == max(2, -(-want // rows))
    assert sum(r.cells for r in requests) <= 1.26 * want * (2 if total < want else 1) + 6 * max(LEAST, 800) + 6 * total


def population(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Clean numbers, and what rows hold, of which these tell a part."""
    clean = (rng.random(rows) < 0.8).astype(float)
    return clean, 0.5 * clean + rng.normal(0, 0.5, rows)


@pytest.mark.parametrize(("total", "want"), [(600, 3000), (2000, 1500), (5000, 2000), (5000, 4900)])
def test_the_error_stated_is_the_error_made(total: int, want: int) -> None:
    """Of a curve that falls by 0.4 to each side: the square of what a measurement errs by is, on average over 400, what
    it says within what 400 of them may tell: chi squared of that freedom, once in a million."""
    rng = np.random.default_rng(3)
    clean, holds = population(rng, total)
    truth, squares, stated = float(holds.mean()), [], []
    for _ in range(400):
        order = rng.permutation(total)
        own, known = holds[order], clean[order]
        noise = rng.normal(0, 0.6, (8, total))
        answers = []
        for r in around(Request(SITE, (), (0,), total), LEVELS, want, 400, LEAST):
            part = slice(r.start, r.end)
            at = -0.4 * np.log2(np.array(r.levels))[:, None, None]
            answers.append(at + own[part] + (1 + at) * noise[list(r.draws)][:, part])
        requests = around(Request(SITE, (), (0,), total), LEVELS, want, 400, LEAST)
        fall = fall_of_rows(math.log(2), truth, known, measured(requests, answers))
        assert fall.root is not None
        squares.append((fall.root * fall.slope) ** 2)  # how far the curve is off at x = 0
        stated.append(fall.error**2)
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], 400) / 400
    assert low < np.mean(squares) / np.mean(stated) < high
    # That of all rows under few draws, with what rows differ by left out, would be too small; without the correction
    # for the rows evaluated too large.
    within, between = 0.36, float(holds.var() * (1 - np.corrcoef(holds, clean)[0, 1] ** 2))
    draws, rows = max(1, want / total), min(total, want)
    assert np.mean(stated) == pytest.approx(within / (rows * draws) + between * (1 / rows - 1 / total), rel=0.2)


def test_what_is_needed_is_enough() -> None:
    """The error that the row-draws asked for give is the one wanted, with what is held in reserve."""
    for rows in (300, 2000, 10**6):
        want = needed(0.15, 0.1, 0.01, rows)
        draws, seen = max(1.0, want / RESERVE / rows), min(rows, want / RESERVE)
        assert 0.15 / (seen * draws) + 0.1 * (1 / seen - 1 / rows) == pytest.approx(1e-4, rel=0.01)


def test_numbers_without_noise_err_by_what_rows_differ_by() -> None:
    clean = np.zeros(100)
    first, rest = np.tile(np.arange(40.0), (2, 1)), np.arange(40.0, 80.0)[None]
    none = np.zeros((2, 40))
    spread = np.arange(80.0).var(ddof=1)
    assert paired_error(clean, first, rest, none) == pytest.approx(math.sqrt(spread * (1 / 80 - 1 / 100)))
    assert paired_error(clean[:80], first, rest, none) == 0.0
