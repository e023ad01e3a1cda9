"""Comparisons of studies: matched sites, ratios with intervals that hold, bounds, and what else differs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from made_study import MIDPOINTS, SITES, made_study

from noisykernels.stats.midpoint import described
from noisykernels.study import Study, compare


@pytest.fixture(scope="module")
def study():
    return made_study()


def test_ratios_and_verdicts(study):
    factors = [(1.0, 1.5, 0.5)[i % 3] for i in range(16)]
    other = made_study([f * v for f, v in zip(factors, MIDPOINTS, strict=True)], seed=9)
    both = compare(study, other)
    assert [p.site for p in both.pairs] == list(SITES)
    for p, factor, a, b in zip(both.pairs, factors, study.midpoints(), other.midpoints(), strict=True):
        assert (p.a, p.b) == (a, b)
        if p.a.status == "ok":
            assert p.ratio == b.level / a.level and p.low < p.ratio < p.high
            assert p.low < factor < p.high or abs(math.log(p.ratio / factor)) < 2 * math.log(p.high / p.low)
            up = math.hypot(math.log(b.high / b.level), math.log(a.level / a.low))
            assert p.high == pytest.approx(p.ratio * math.exp(up))
            assert p.verdict == {1.0: "not told apart", 1.5: "higher", 0.5: "lower"}[factor]
        else:
            assert math.isnan(p.ratio) and p.verdict == "not told apart"
    assert both == study.compare(other) and both.differences == []


def test_a_study_and_itself(study):
    for p in compare(study, study).pairs:
        assert p.verdict == "not told apart" and p.low <= 1 <= p.high


def test_sides_can_be_swapped(study):
    other = made_study([1.3 * v for v in MIDPOINTS], seed=9)
    for p, q in zip(study.compare(other).pairs, other.compare(study).pairs, strict=True):
        if p.a.status == "ok":
            assert (p.low, p.ratio, p.high) == pytest.approx((1 / q.high, 1 / q.ratio, 1 / q.low))


def only(midpoint, **meta):
    return made_study([midpoint], **meta)


# Levels reach from 0.01 to 10,000: 1e-4 is below them all, 1e7 never falls.
@pytest.mark.parametrize(
    ("a", "b", "low", "high", "verdict"),
    [
        (1e-4, 1.0, 90, math.inf, "higher"), (1.0, 1e-4, 0, 0.011, "lower"), (1e7, 1.0, 0, 1.1e-4, "lower"),
        (1.0, 1e7, 9e3, math.inf, "higher"), (1e-4, 1e7, 1e6, math.inf, "higher"), (1e7, 1e-4, 0, 1e-6, "lower"),
        (1e7, 2e7, 0, math.inf, "not told apart"), (1e-4, 2e-4, 0, math.inf, "not told apart"),
    ],
)  # fmt: skip
def test_bounds(a, b, low, high, verdict):
    (p,) = compare(only(a), only(b, seed=1)).pairs
    assert math.isnan(p.ratio) and p.verdict == verdict
    assert p.low == pytest.approx(low, rel=0.1) and p.high == pytest.approx(high, rel=0.1)
    text = compare(only(a), only(b, seed=1)).table().splitlines()[-1]
    assert text.endswith(verdict if verdict == "not told apart" else f"b {verdict}") and "nan" not in text
    assert "inf" not in text


def test_an_open_interval_makes_an_open_ratio(study):
    (found,) = only(1.0).midpoints()
    meta = replace(only(1.0).meta, midpoints=(described(replace(found, high=math.inf)),))
    opened = Study(only(1.0).records, meta)
    (p,) = compare(only(1.0), opened).pairs
    assert p.ratio == 1 and p.high == math.inf and 0 < p.low < 1 and p.verdict == "not told apart"
    assert f"> {p.low:.4g}" in compare(only(1.0), opened).table()
    (q,) = compare(opened, only(1.0)).pairs
    assert q.low == 0 and q.high == pytest.approx(1 / p.low)


def test_sites_of_one_study_are_listed(study):
    some = Study([r for r in study.records if r.site_index in (1, 2)], study.meta)
    rest = Study([r for r in study.records if r.site_index in (2, 3)], study.meta)
    both = compare(some, rest, ("x", "y"))
    assert [(p.site, p.verdict) for p in both.pairs] == [
        (SITES[1], "only in a"), (SITES[2], "not told apart"), (SITES[3], "only in b"),
    ]  # fmt: skip
    lines = both.table().splitlines()
    assert lines[1].split() == ["site", "x", "y", "y", "/", "x", "95%", "interval", "verdict"]
    assert lines[3].endswith("only in x") and lines[5].endswith("only in y")
    with pytest.raises(ValueError, match="no site in common"):
        compare(Study(some.records[:39], study.meta), Study(rest.records[39:], study.meta))


def test_what_differs_is_said(study):
    other = replace(study.meta, seed=2, model="m2", data="d2", noise={**study.meta.noise, "add": 0.5}, floor=0.2)
    said = compare(study, Study(study.records, other)).differences
    assert said == [
        "model:  and m2",
        "data:  and d2",
        "noise: add 1.0 and add 0.5",
        "seed: 1 and 2",
        "floor: 0.1 and 0.2",
    ]
    assert "the studies differ: seed: 1 and 2" in compare(study, Study(study.records, other)).table()


@pytest.mark.parametrize("names", [("a", "a"), ("a",), ("a", "b", "c")])
def test_names_must_be_two(study, names):
    with pytest.raises(ValueError, match="names must be two that differ"):
        compare(study, study, names)
