"""Multi-execution: published lists, allocation against brute force, and what `inject` makes of it."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_study import CLEAN, FLOOR, SITES, made_study

import noisykernels as nk
from noisykernels.stats import Midpoint
from noisykernels.study import MAPPINGS, allocate, predicted_accuracy, tailored, uniform
from noisykernels.zoo import networks as models

# Midpoints of the MLP on MNIST (two digits), and the lists of the published configuration made from them.
MLP = dict(zip([f"s{i}" for i in range(8)], (0.54, 3.3, 2.4, 7.2, 6.0, 20, 17, 45), strict=True))
PUBLISHED = [
    ("inverse_square", 20, [144, 4, 7, 1, 1, 1, 1, 1]),
    ("inverse", 20, [99, 16, 22, 7, 9, 3, 3, 1]),
    ("rank", 2, [3, 3, 3, 2, 2, 1, 1, 1]),
    ("rank", 20, [36, 27, 31, 18, 22, 9, 13, 4]),
    ("inverse_rank", 20, [59, 20, 29, 12, 15, 8, 10, 7]),
    ("inverse_rank", 10, [29, 10, 15, 6, 7, 4, 5, 4]),
    ("rank_bins_of_two", 20, [32, 24, 32, 16, 24, 8, 16, 8]),
    ("rank_bins_of_three", 20, [28, 28, 28, 19, 19, 10, 19, 9]),
    ("inverse_rank_bins_of_two", 20, [38, 19, 38, 13, 19, 10, 13, 10]),
    ("inverse_rank_bins_of_three", 20, [31, 31, 31, 16, 15, 10, 16, 10]),
]


@pytest.mark.parametrize(("mapping", "mean", "expected"), PUBLISHED)
def test_published_lists(mapping, mean, expected) -> None:
    """Equal up to one execution moved: sites of equal claim are ties, and midpoints are known to two digits."""
    found = list(tailored(MLP, mean, mapping).values())
    assert sum(found) == sum(expected) == mean * 8
    assert np.abs(np.subtract(found, expected)).sum() <= 2


def test_published_ranks_are_the_order_of_the_sites() -> None:
    points = {"a": 3.0, "b": 1.0, "c": 2.0}  # ranks 2, 0, 1; sites in order 1, 2, 0
    assert tailored(points, 6, "rank") == {"a": 3, "b": 9, "c": 6}
    assert tailored(points, 6, "rank", published_ranks=True) == {"a": 6, "b": 3, "c": 9}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(1e-4, 1e16), min_size=1, max_size=20),
    st.sampled_from(sorted(MAPPINGS)),
    st.integers(1, 20),
)
def test_every_mapping_keeps_the_mean_and_the_order(points, mapping, mean) -> None:
    found = np.array(list(tailored({f"s{i}": m for i, m in enumerate(points)}, mean, mapping).values()))
    assert found.sum() == mean * len(points) and found.min() >= 1
    order = np.argsort(points, kind="stable")
    if mapping != "inverse_log":  # which ranks a site below 1 last
        assert (np.diff(found[order]) <= 1).all()  # 1: of equal claims, one gets the remainder


def test_uniform_and_names() -> None:
    model = models.MLP(4, 3, width=4)
    sites = nk.sites(model, torch.zeros(2, 4))
    repeats = uniform(sites, 4)
    assert set(repeats) == {s.name for s in sites} and set(repeats.values()) == {4}
    assert list(repeats)[-1] == "input"  # as a pattern it would also take input#1
    assert uniform(["input", "input#1"], 2) == {"input#1": 2, "input": 2}
    assert uniform(made_study().midpoints(), 2) == dict.fromkeys(SITES, 2)


def points(mids, slopes, floors=None, clean=0.9):
    floors = [0.1] * len(mids) if floors is None else floors
    return [
        Midpoint(m, m, m, m, m, m, (m,), k, clean, f, "ok", "rows", site=f"s{i}")
        for i, (m, k, f) in enumerate(zip(mids, slopes, floors, strict=True))
    ]


def plain_loss(p, sigma, repeats, axis="log", lowest=0.1) -> float:
    """-log of the part of the accuracy above the lowest floor, straight from the fitted curve."""
    s = sigma / math.sqrt(repeats)
    t, mid = (math.log10(s), math.log10(p.level)) if axis == "log" else (s, p.level)
    fall = math.exp(p.slope * (t - mid))
    if p.floor == lowest:
        return math.log1p(fall)  # the same without the cancellation that follows
    accuracy = p.floor + (p.clean - p.floor) / (1 + fall)
    return -math.log((accuracy - lowest) / (p.clean - lowest))


def brute(ps, costs, budget, sigma, axis="log", lowest=0.1):
    """Least loss over all allocations."""
    most = [int((budget - sum(costs) + c + 1e-9) / c) for c in costs]
    tables = [[plain_loss(p, sigma, r, axis, lowest) for r in range(1, m + 1)] for p, m in zip(ps, most, strict=True)]
    return min(
        sum(t[r] for t, r in zip(tables, choice, strict=True))
        for choice in itertools.product(*(range(m) for m in most))
        if sum(c * (r + 1) for c, r in zip(costs, choice, strict=True)) <= budget + 1e-9
    )


MIDS = st.lists(st.floats(0.05, 20), min_size=1, max_size=4)


@settings(max_examples=80, deadline=None)
@given(MIDS, st.data(), st.sampled_from(["log", "linear"]))
def test_optimal_with_equal_costs(mids, data, axis) -> None:
    slopes = data.draw(st.lists(st.floats(0.5, 20), min_size=len(mids), max_size=len(mids)))
    sigma = data.draw(st.floats(0.05, 5))
    budget = len(mids) + data.draw(st.integers(0, 9))
    ps = points(mids, slopes)
    found = allocate(ps, budget, level=sigma, axis=axis)
    assert sum(found.values()) <= budget
    loss = sum(plain_loss(p, sigma, found[p.site], axis) for p in ps)
    assert loss == pytest.approx(brute(ps, [1] * len(ps), budget, sigma, axis), rel=1e-9, abs=1e-9)
    predicted = 0.1 + 0.8 * math.exp(-loss)
    assert predicted_accuracy(ps, found, level=sigma, axis=axis) == pytest.approx(predicted, rel=1e-9)


@settings(max_examples=80, deadline=None)
@given(MIDS, st.data())
def test_near_the_optimum_with_other_costs(mids, data) -> None:
    """Not above the best loss by more than the gain of the first step that the budget refuses."""
    n = len(mids)
    slopes = data.draw(st.lists(st.floats(0.5, 20), min_size=n, max_size=n))
    costs = data.draw(st.lists(st.floats(0.5, 4), min_size=n, max_size=n))
    sigma, budget = data.draw(st.floats(0.05, 5)), sum(costs) + data.draw(st.floats(0, 8))
    ps = points(mids, slopes)
    found = allocate(ps, budget, level=sigma, cost={p.site: c for p, c in zip(ps, costs, strict=True)})
    assert sum(c * found[p.site] for p, c in zip(ps, costs, strict=True)) <= budget * (1 + 1e-9)
    steps = sorted(
        ((plain_loss(p, sigma, r) - plain_loss(p, sigma, r + 1)) / c, c)
        for p, c in zip(ps, costs, strict=True) for r in range(1, 40)
    )[::-1]  # fmt: skip
    left, refused = budget - sum(costs), 0.0
    for gain, c in steps:
        if c > left:
            refused = gain * c
            break
        left -= c
    loss = sum(plain_loss(p, sigma, found[p.site]) for p in ps)
    best = brute(ps, costs, budget, sigma)
    assert best - 1e-9 <= loss <= best + refused + 1e-9


def test_costs_matter_and_levels_may_differ() -> None:
    ps = points([1.0, 1.0], [5.0, 5.0])
    assert allocate(ps, 10, level=1.0) == {"s0": 5, "s1": 5}
    dear = allocate(ps, 10, level=1.0, cost={"s0": 3, "s1": 1})
    assert dear["s0"] < dear["s1"] and 3 * dear["s0"] + dear["s1"] <= 10
    assert allocate(ps, 10, level={"s0": 3.0, "s1": 0.1})["s0"] >= 8
    assert allocate(ps, 2, level=1.0) == {"s0": 1, "s1": 1}
    assert allocate(ps, 0.3, level=1.0, cost=0.1) == {"s0": 2, "s1": 1}  # 0.3 / 0.1 is not quite 3
    assert allocate(ps, 10, level=0.0) == {"s0": 1, "s1": 1}  # nothing to gain


def test_floors_of_their_own_make_losses_non_convex() -> None:
    """A flat start followed by a fall: a step of one gains next to nothing, several at once do."""
    ps = points([0.25, 1.0], [40.0, 1.0], floors=[0.3, 0.1])
    gains = [plain_loss(ps[0], 0.8, r) - plain_loss(ps[0], 0.8, r + 1) for r in range(1, 12)]
    assert gains[0] < gains[6]  # not convex
    found = allocate(ps, 20, level=0.8)
    loss = sum(plain_loss(p, 0.8, found[p.site]) for p in ps)
    assert predicted_accuracy(ps, found, level=0.8) == pytest.approx(0.1 + 0.8 * math.exp(-loss), rel=1e-12)
    assert found["s0"] > 8 and loss == pytest.approx(brute(ps, [1, 1], 20, 0.8), rel=0.05)


def test_sites_without_a_midpoint_count_with_their_bound_and_the_median_slope() -> None:
    known = points([1.0, 1.0, 1.0, 3.0, 0.2], [2.0, 7.0, 4.0, 4.0, 4.0])
    nan, inf = math.nan, math.inf
    bounds = [
        Midpoint(nan, 3.0, inf, nan, 3.0, inf, (), nan, 0.9, 0.1, "none", "rows", site="s3"),
        Midpoint(nan, 0.0, 0.2, nan, 0.0, 0.2, (), nan, 0.9, 0.1, "below", "rows", site="s4"),
    ]
    unknown = [*known[:3], *bounds]
    assert predicted_accuracy(unknown, 3, level=0.7) == predicted_accuracy(known, 3, level=0.7)
    assert allocate(unknown, 30, level=0.7) == allocate(known, 30, level=0.7)
    sites = dict(zip([p.site for p in known], [1.0, 1.0, 1.0, 3.0, 0.2], strict=True))
    assert tailored(unknown, 4) == tailored(sites, 4)


def test_from_a_study() -> None:
    study = made_study()
    found = allocate(study, 160, level=0.3)
    assert set(found) == set(SITES) and sum(found.values()) == 160
    assert found[SITES[6]] > 60  # fallen before the smallest level
    assert found[SITES[14]] == 1  # never falls
    plain = predicted_accuracy(study, 1, level=0.3)
    even = predicted_accuracy(study, uniform(SITES, 10), level=0.3)
    best = predicted_accuracy(study, found, level=0.3)
    assert FLOOR <= plain < even < best < CLEAN
    mapped = tailored(study, 3)
    assert sum(mapped.values()) == 3 * 16 and max(mapped, key=mapped.get) == SITES[6]
    assert best >= max(predicted_accuracy(study, tailored(study, 10, m), level=0.3) for m in MAPPINGS)


def test_inject_takes_the_result() -> None:
    torch.manual_seed(0)
    model, x = models.MLP(6, 3, width=5, hidden=1).eval(), torch.randn(7, 6)
    sites = nk.sites(model, x)
    repeats = {s.name: i + 1 for i, s in enumerate(sites)}
    noises = {s.name: nk.Noise(add=1.0 / math.sqrt(i + 1)) for i, s in enumerate(sites)}
    ps = points([1.0] * len(sites), [5.0] * len(sites))
    found = allocate([Midpoint(**{**vars(p), "site": s.name}) for p, s in zip(ps, sites, strict=True)], 10, level=1.0)
    outputs = []
    for noise, r in ((nk.Noise(add=1.0), repeats), (noises, 1), (nk.Noise(add=1.0), found)):
        with torch.no_grad(), nk.inject(model, noise, repeats=r, example_input=x), nk.noise_state(model, seed=3):
            outputs.append(model(x))
    assert torch.allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)  # rounding of 1 / sqrt(R)
    assert not torch.allclose(outputs[0], outputs[2], rtol=1e-2)


POINTS = points([1.0, 2.0], [5.0, 5.0])
NONE = Midpoint(math.nan, 0.0, math.inf, math.nan, 0, math.inf, (), math.nan, 0.9, 0.1, "none", "rows", site="n")
OPEN = replace(NONE, low=0.5, high=2.0, status="open", method="stopped")
BAD = [
    (lambda: uniform([], 2), "uniform: sites .* at least one"),
    (lambda: uniform("input", 2), "uniform: sites must be a list"),
    (lambda: uniform(["a", "a"], 2), "uniform: sites must differ"),
    (lambda: uniform(["a"], 0), "uniform: repeats must be a whole number from 1 to .*, got 0"),
    (lambda: uniform(["a"], 1.5), "uniform: repeats .* got 1.5"),
    (lambda: tailored({"a": 1.0}, 2, "no"), "tailored: mapping must be one of .*, got 'no'"),
    (lambda: tailored({"a": 0.0}, 2), "tailored: midpoints must be finite and above 0, got 0.0 at 'a'"),
    (lambda: tailored({}, 2), "tailored: sites"),
    (lambda: tailored([NONE], 2), "tailored: midpoints must have a finite bound above 0, got 0.0 .none. at 'n'"),
    (lambda: tailored([OPEN], 2), "tailored: midpoints must be found, got one that a search has left open at 'n'"),
    (lambda: allocate([*POINTS, replace(OPEN, low=0.0)], 5, level=1), "allocate: midpoints must be found"),
    (lambda: tailored(["a"], 2), "tailored: each item of midpoints must be a Midpoint, got 'a'"),
    (lambda: allocate(POINTS, 1, level=1), "allocate: budget must be at least 2, one execution per site, got 1"),
    (lambda: allocate(POINTS, math.nan, level=1), "allocate: budget"),
    (lambda: allocate(POINTS, 5, level=-1), "allocate: level must be a finite number of at least 0 or a dict, got -1"),
    (lambda: allocate(POINTS, 5, level={"s0": 1}), "allocate: level must have an entry for each site, got none for s1"),
    (lambda: allocate(POINTS, 5, level=1, cost=0), "allocate: cost must be finite and above 0, got 0"),
    (lambda: allocate(POINTS, 5, level=1, axis="odd"), "allocate: axis must be 'log' or 'linear' or None, got 'odd'"),
    (lambda: allocate([NONE], 5, level=1), "allocate: midpoints must hold at least one with a fitted slope"),
    (lambda: allocate([*POINTS, NONE], 5, level=1), "allocate: midpoints must have a finite bound"),
    (lambda: allocate(POINTS + points([1], [1], clean=0.8), 5, level=1), "allocate: sites must differ"),
    (lambda: predicted_accuracy(POINTS, {"s0": 2}, level=1), "predicted_accuracy: repeats must have an entry"),
    (lambda: predicted_accuracy(POINTS, 0, level=1), "predicted_accuracy: repeats must be a whole number"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(call, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()
