"""Searches of measures that are sums over rows: coverage, values of a grid, rare classes, what has no value."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_curves import FLOOR, Made, search, seek
from made_sums import BLOCK, MadeSums, search_sums
from measure_cases import Hits
from measures_page import Here
from scipy import stats
from torch import Tensor, nn

import noisykernels as nk
from noisykernels import Drop, Keep, Ratio, Value
from noisykernels._engine.request import Answer, Request
from noisykernels.metrics import OfSums
from noisykernels.stats.pseudo import shares_of_sums
from noisykernels.stats.questions import HALF, Question

ASKED: list[tuple[dict[str, Any], Question]] = [
    ({"metric": "f1"}, HALF), ({"metric": "f1", "rows": 200}, Keep(0.8)),
    ({"metric": "f1", "rows": 700}, Value(0.7)), ({"metric": "mean_iou", "rows": 500, "places": 4}, Drop(0.1)),
    ({"metric": "f1", "rows": 150, "chip": 0.3}, Ratio(0.8)),
]  # fmt: skip


@pytest.mark.parametrize(("how", "asked"), ASKED, ids=lambda v: str(v))
def test_intervals_hold_the_truth(how: dict[str, Any], asked: Question) -> None:
    """So many of 40 (of chips 20) that true coverage of 93 % would give fewer once in ten thousand;
    `bench/question_coverage.py` has more."""
    chips, truth, hits = "chip" in how, math.nan, 0
    count = 20 if chips else 40
    for seed in range(count):
        made = MadeSums(seed, **how)
        one = search_sums(made, asked, 0.1, chips=chips)
        seek([one], made)
        found = one.found
        assert found is not None and (found.status, found.method, found.word) == ("ok", "adaptive", asked.word)
        assert found.clean == made.value(made.clean) and found.high / found.low < 1.12
        if seed == 0:
            truth = made.truth(found.target, found.level, 2000 if chips else 400)
        hits += found.low <= truth <= found.high
    assert hits >= stats.binom.ppf(1e-4, count, 0.93)


def test_shares_of_sums_have_the_value_as_their_mean_and_scatter_as_blocks_do() -> None:
    """Of a ratio they are the delta method's; a block that has all of a class has a share as well."""
    rng = np.random.default_rng(0)
    sums = rng.random((3, 2, 40, 2)) + np.array([0.0, 5.0])
    found = shares_of_sums(sums, lambda s: s[..., 0] / s[..., 1], np.full(40, 250))
    a, b = sums.sum(-2)[..., 0, None], sums.sum(-2)[..., 1, None]
    assert np.allclose(found.mean(-1), (a / b)[..., 0], rtol=1e-13)
    slopes = 40 * (sums[..., 0] / b - sums[..., 1] * a / b**2)
    assert np.allclose(found - a / b, slopes, rtol=0.03, atol=1e-3)
    one = np.array([[1.0, 2.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])  # of two classes
    found = shares_of_sums(one, lambda s: (s[..., 0::2] / s[..., 1::2]).mean(-1), np.array([3, 3]))
    assert np.isfinite(found).all() and found.mean() == pytest.approx(0.625)
    none = shares_of_sums(np.zeros((2, 2)), lambda s: s[..., 0] / s[..., 1], np.array([1, 1]))
    assert np.isnan(none).all()


def test_shares_of_a_mean_are_those_of_blocks_that_differ_in_size() -> None:
    """So their variance over draws is that of the value, times the blocks: a last block is smaller than others."""
    rng, rows = np.random.default_rng(0), np.array([250, 250, 40])
    sums = np.stack([rng.random((5, 3)) * rows, np.broadcast_to(rows, (5, 3))], -1)
    found = shares_of_sums(sums, lambda s: s[..., 0] / s[..., 1], rows)
    assert np.allclose(found, 3 * sums[..., 0] / 540, rtol=1e-12)


def test_one_block_and_one_row_more_than_a_block() -> None:
    """Then draws are all that tells, or nearly."""
    for rows in (BLOCK, BLOCK + 1):
        made = MadeSums(1, rows=rows)
        one = search_sums(made, HALF, 0.1)
        seek([one], made)
        assert one.found is not None and one.found.status == "ok"
        assert one.found.low <= made.truth(one.found.target, one.found.level, 1000) <= one.found.high


def test_first_looks_are_on_some_rows_and_measurements_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more blocks than a measurement of rows needs. Classes that few rows have are waited for: else the first rows
    would have no value."""

    class Rare(MadeSums):
        def __init__(self, seed: int) -> None:
            super().__init__(seed, rows=10_000)
            self.labels[:, 0] = np.where(np.arange(10_000) == 2600, 3, self.labels[:, 0] % 3)
            self.clean = self.sums(self.labels)
            self.wrong[:] = False

    monkeypatch.setattr("noisykernels.walking.search.CHIP_ROWS", 9)  # so all are several times what chips are seen on
    chips = MadeSums(0, rows=10_000, chip=0.3)
    for made, first in ((MadeSums(0, rows=10_000), [2000] * 2), (Rare(0), [2750] * 2), (chips, [2000, 3250])):
        seen: list[Request] = []
        one = search_sums(made, HALF, 0.1, chips=made is chips, rel_ci=0.2)
        seek([one], lambda requests, m=made, all_=seen: (all_.extend(requests), m(requests))[1])
        assert one.found is not None and one.found.status == "ok"
        assert [r.rows for r in seen[:2]] == first and {r.rows for r in seen[2:]} == {10_000}


def test_clean_shares_of_some_blocks_are_in_their_own_value() -> None:
    """First looks are held against it, not against the value of all."""
    made = MadeSums(0)
    aim = search_sums(made, HALF, 0.1).aim
    for start, end in ((0, 2), (3, 6), (0, 6)):
        assert aim.part(start, end).mean() == pytest.approx(made.value(made.clean[start:end]), rel=1e-12)


def test_a_search_spends_no_more_than_it_may() -> None:
    free = search_sums(MadeSums(3), HALF, 0.1)
    seek([free], MadeSums(3))
    assert free.found is not None
    truth = MadeSums(3).truth(free.found.target, free.found.level, 300)
    for most in (1, 20, 100, 300):
        made = MadeSums(3)
        one = search_sums(made, HALF, 0.1, most=most)
        seek([one], made)
        assert one.found is not None and one.evaluations <= most and made.asked <= most * BLOCK
        assert one.found.low <= truth <= one.found.high


def test_a_value_that_is_never_reached_is_told_so() -> None:
    class Bounded(MadeSums):
        def said(self, draw: int, levels: Sequence[float]) -> Any:
            return super().said(draw, [min(v, 0.5) for v in levels])

    made = Bounded(1)
    one = search_sums(made, HALF, 0.1)
    seek([one], made)
    assert one.found is not None and one.found.status == "none" and one.found.low > 1e4


def test_all_crossings_of_a_curve_that_recovers_are_told() -> None:
    """Of sums, and of the accuracy, whose midpoint is what it was."""

    class Recovers(MadeSums):
        def said(self, draw: int, levels: Sequence[float]) -> Any:
            return super().said(draw, [v if v < 20 else 0.01 for v in levels])

    made, other = Recovers(1), MadeSums(1)
    one, usual = search_sums(made, HALF, 0.1), search_sums(other, HALF, 0.1)
    seek([one], made)
    seek([usual], other)
    assert one.found is not None and usual.found is not None and usual.found.crossings == (usual.found.level,)
    first, second = one.found.crossings
    assert first == one.found.level == usual.found.level and 8 < second < 32

    class Again(Made):
        def probability(self, level: float, rows: int = 1500) -> Any:
            return super().probability(level if level < 20 else 0.01, rows)

    again, never = search(Again(1)), search(Made(1))
    seek([again], Again(1))
    seek([never], Made(1))
    assert again.found is not None and never.found is not None and again.aim.floor == FLOOR
    assert again.found.level == never.found.level and never.found.crossings == (never.found.level,)
    assert len(again.found.crossings) == 2 and again.found.crossings[0] == never.found.level


def lost(from_level: float) -> Any:
    """Sums of some blocks that are NaN from a level on, as outputs with NaN make them."""

    def give(made: MadeSums, requests: Sequence[Request]) -> list[Answer]:
        answers = made(requests)
        for r, a in zip(requests, answers, strict=True):
            a[np.array(r.levels) > from_level, :, 1::3] = np.nan
        return answers

    return give


def test_blocks_without_a_number_are_beyond_every_target() -> None:
    made, same = MadeSums(1), MadeSums(1)
    one, other = search_sums(made, Drop(0.1)), search_sums(same, Drop(0.1))
    seek([one], lambda requests: lost(20.0)(made, requests))
    seek([other], same)
    assert str(one.found) == str(other.found)
    far = search_sums(made, Value(0.5))
    seek([far], lambda requests: lost(0.4)(made, requests))
    assert far.found is not None and far.found.status == "open" and 0.1 < far.found.low < 0.41 < far.found.high < 1


# ------------------------------------------------------------------------------------- real models


def walked(made: Any, **options: Any) -> Any:
    model, data = made
    options = {"noise": nk.Noise(add=1.0), "seed": 3, "compute": nk.Compute(threads=1), "sites": [1]} | options
    return nk.walk(model, data, **options)


@pytest.mark.parametrize(
    ("metric", "at"),
    [("f1", "half"), ("mean_iou", Keep(0.8)), ("ece", Drop(0.05)), (Hits(), Value(0.8)), ("auroc", Ratio(0.9))],
)
def test_a_search_has_the_values_of_a_grid_at_its_levels_and_draws(classifier: Any, metric: Any, at: Any) -> None:
    model, (x, y) = classifier
    if metric == "auroc":
        model, y = nn.Sequential(model, nn.Linear(3, 1, bias=False)), (y == 1).long()
        with torch.no_grad():
            model[1].weight.copy_(torch.tensor([[-1.0, 2.0, -1.0]]))
    made = model, (x, y)
    study = walked(made, metric=metric, at=at)
    (found,) = study.midpoints()
    assert found.status == "ok" and found.low < found.level < found.high < 1.12 * found.low
    whole = [r for r in study.records if r.rows == len(x)]
    levels = sorted({r.level for r in whole}, key=lambda v: abs(v - found.level))[:5]
    draws = sorted({r.draw for r in whole if r.level in levels})
    grid = walked(made, metric=metric, levels=sorted(levels), draws=draws, compute=nk.Compute(engine="plain"))
    values = {(r.level, r.draw): r.value for r in grid.records}
    same = [(r.value, values[r.level, r.draw]) for r in whole if r.level in levels]
    assert len(same) > 20 and all(a == b for a, b in same)
    around = walked(made, metric=metric, levels=[found.low / 1.02, found.high * 1.02], draws=range(1000, 1300))
    ends = [curve for c in around.curves() for curve in c.mean]
    assert min(ends) < found.target < max(ends)


def test_a_sum_that_is_a_mean_is_found_as_the_mean_is(classifier: Any) -> None:
    """`Hits` are the accuracy: the same curve, so intervals that meet."""
    for noise in ({}, {"noise": nk.WeightNoise(add=1.0), "target": "weight"}):
        one, other = (walked(classifier, metric=m, at=Drop(0.2), **noise).midpoints()[0] for m in (Hits(), "accuracy"))
        assert one.target == pytest.approx(other.target) and one.low < other.high and other.low < one.high


class Counted(Hits):
    """How many are right: more, the more rows there are."""

    def compute(self) -> Tensor:
        return self.right.float()


def test_what_grows_with_the_rows_has_grids_only() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(6, 3), torch.randn(600, 6)
    data, noise = (x, model(x).argmax(-1)), dict(noise=nk.Noise(add=1.0), seed=1, metric=Counted(), at=Ratio(0.9))
    with pytest.raises(
        ValueError, match=r"walk: a search looks at some rows first, but .* depends on how many there are"
    ):
        nk.walk(model, data, **noise)
    assert nk.walk(model, data, **noise, levels=[0.1, 1.0], draws=2).meta.clean == 600


def test_stores_resumed_studies_workers_groups_and_ratios_have_equal_records(classifier: Any, tmp_path: Path) -> None:
    how: dict[str, Any] = {"metric": "f1", "at": Keep(0.9)}
    first = walked(classifier, **how)
    sent = walked(classifier, **how, compute=nk.Compute(threads=1, executor=Here()))
    assert sent.records == first.records and sent.midpoints() == first.midpoints()
    store = tmp_path / "s.db"
    stopped = walked(classifier, **how, store=store, search=nk.Search(most=20_000))
    assert stopped.midpoints()[0].method == "stopped" and stopped.meta.plan["evaluations"] <= 20_000
    resumed = walked(classifier, **how, store=store)
    assert resumed.records == first.records and resumed.midpoints() == first.midpoints()
    again = walked(classifier, **how, store=store)
    assert again.records == first.records
    assert nk.Study.load(again.save(tmp_path / "s.json")).midpoints() == first.midpoints()
    with pytest.raises(nk.walking.StoreError):
        walked(classifier, metric="mean_iou", at=Keep(0.9), store=store)
    model, data = classifier
    mixed = nk.walk_mixed(model, data, ratios=[0.5, 1.0], seed=3, sites=[1], **how, compute=nk.Compute(threads=1))
    assert mixed.studies[1].midpoints()[0].low < first.midpoints()[0].high
    together = walked(classifier, **how, sites=None, groups="all")
    assert together.midpoints()[0].level < first.midpoints()[0].level


def test_weighted_sums_are_searched(classifier: Any) -> None:
    """Rows of weight 0 say nothing; whole weights are rows that are there as often."""
    model, (x, y) = classifier
    care = (torch.arange(len(x)) % 3).float()
    found = walked((model, (x, y, care)), metric=nk.metrics.Weighted("f1"), at=Keep(0.8)).midpoints()[0]
    often = torch.repeat_interleave(torch.arange(len(x)), care.long())
    other = walked((model, (x[often], y[often])), metric="f1", at=Keep(0.8)).midpoints()[0]
    assert found.status == "ok" and found.clean == other.clean and found.target == other.target
    assert found.low < other.high and other.low < found.high


@pytest.mark.parametrize("target", ["activation", "weight"])
def test_a_function_of_a_whole_pass_has_grids_only(classifier: Any, target: Any) -> None:
    noise = nk.Noise(add=1.0) if target == "activation" else nk.WeightNoise(add=1.0)
    metric = nk.metrics.WholePass(lambda y, t: (y.argmax(1) == t).float().mean(), True, "share")
    said = r"^walk: a search needs .*, or sums over rows, which share does not give: .*levels and draws for a grid$"
    for more in ({}, {"search": nk.Search()}):
        with pytest.raises(ValueError, match=said):
            walked(classifier, metric=metric, at=Drop(0.1), noise=noise, target=target, **more)
    assert walked(classifier, metric=metric, noise=noise, target=target, levels=[1.0], draws=1).records


class Precision(OfSums):
    """How often class 1 is right where it is said: of nothing, where it is not."""

    name, higher_is_better, width = "precision", True, 2

    def totals(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        said = outputs.argmax(-1) == 1
        return torch.stack([(said & (targets == 1)).sum(-1), said.sum(-1)], 1).double()

    def value(self, pooled: np.ndarray) -> Any:
        return pooled[..., 0] / pooled[..., 1]


class Silent(nn.Module):
    """Never says class 1 under much noise."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        found = self.model(x)
        return torch.where(found.abs().amax(-1, keepdim=True) > 60, found - torch.tensor([0.0, 1e9, 0.0]), found)


def test_a_value_that_is_none_is_counted_and_never_averaged(classifier: Any) -> None:
    """Sums of which no value can be made, as no positive was said: all of their blocks count, the level is beyond."""
    model, data = classifier
    how = {"metric": Precision(), "compute": nk.Compute(threads=1)}
    silent = Silent(model).eval()
    sites = [s.name for s in nk.sites(silent, data[0][:2]) if s.kind == "linear"][-1:]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        grid = walked((silent, data), **how, sites=sites, levels=[0.1, 1.0, 1e6], draws=2)
        found = walked((silent, data), **how, sites=sites, at=Drop(0.2)).midpoints()[0]
    last = [r for r in grid.records if r.level == 1e6]
    assert all(math.isnan(r.value) and r.missing == 3 for r in last) and grid.curves()[0].mean[-1] == -math.inf
    assert found.status in ("ok", "open") and found.low < 1e6
    with pytest.warns(UserWarning, match="level 1e.06: 6 of 6 blocks of rows have an infinite or no precision"), \
            np.errstate(all="ignore"):  # fmt: skip
        walked((silent, data), **how, sites=sites, levels=[1e6], draws=2)
