"""Weights in the data: every form gives the same study, rows of weight 0 say nothing, and what is wrong is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from made_curves import ROWS, SITE, MadeLoss, seek
from made_grids import made_accuracy, made_loss, uneven
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import noisykernels as nk
from noisykernels._engine.request import Answer, Request
from noisykernels.metrics import Real, Weighted
from noisykernels.stats.regression import RowWeights, spread_given
from noisykernels.training import m_sharpness
from noisykernels.walking import StoreError
from noisykernels.walking.aim import Aim
from noisykernels.walking.search import SiteSearch

GRID: dict[str, Any] = {"noise": nk.Noise(add=1.0), "levels": [0.3, 3.0], "draws": 2, "seed": 1}


class Table(NamedTuple):
    x: Tensor
    label: Tensor
    weights: Tensor


def problem() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5)).eval(), torch.randn(60, 6)
    weights = torch.rand(60).square()
    weights[::7] = 0
    return model, x, torch.arange(60) % 5, weights


MODEL, X, Y, W = problem()


def walked(data: Any, metric: Any = "nll", key: str = "weights", **options: Any) -> nk.Study:
    return nk.walk(MODEL, data, metric=Weighted(metric, key), **{**GRID, **options})


FORMS: dict[str, tuple[Any, str]] = {
    "list": ([X, Y, W], "weights"),
    "numpy": ((X.numpy(), Y.numpy(), W.numpy()), "weights"),
    "named tuple": (Table(X, Y, W), "weights"),
    "dict": ({"input": X, "labels": Y, "weights": W}, "weights"),
    "dict, another key": ({"input": X, "labels": Y, "care": W}, "care"),
    "inputs by name": (({"input": X, "care": W}, Y), "care"),
    "inputs by name, third": (({"input": X}, Y, W), "weights"),
    "data set": (TensorDataset(X, Y, W), "weights"),
    "loader": (DataLoader(TensorDataset(X, Y, W), batch_size=13), "weights"),
    "batches of dicts": ([{"input": X[i : i + 20], "labels": Y[i : i + 20], "w": W[i : i + 20]}
                          for i in (0, 20, 40)], "w"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_study(form: str) -> None:
    data, key = FORMS[form]
    assert walked(data, key=key).records == walked((X, Y, W)).records


def test_larger_than_memory() -> None:
    loader, small = DataLoader(TensorDataset(X, Y, W), batch_size=7), nk.Compute(memory=2000)
    for metric in ("nll", "mean_iou"):
        some, every = walked(loader, metric, compute=small), walked((X, Y, W), metric)
        assert [r.value for r in some.records] == pytest.approx([r.value for r in every.records], rel=1e-6)
        assert some.meta.floor == pytest.approx(every.meta.floor)


class Masked(nn.Module):
    """Takes its mask, and leaves out what is masked."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        h: Tensor = self.embed(input_ids) * attention_mask.unsqueeze(-1)
        return self.head(h + h.sum(1, keepdim=True) / attention_mask.sum(1).view(-1, 1, 1))


def test_a_mask_that_the_model_takes_as_well() -> None:
    torch.manual_seed(1)
    model, ids, lengths = Masked().eval(), torch.randint(20, (30, 9)), 3 + torch.arange(30) % 7
    mask = (torch.arange(9) < lengths[:, None]).long()
    grid = {**GRID, "sites": ["embed:embedding#0"], "target": "activation"}
    grid["sites"] = ["head:linear#0"]
    study = nk.walk(model, {"input_ids": ids, "attention_mask": mask}, metric=Weighted("kl", "attention_mask"), **grid)
    labels = ids.masked_fill(mask == 0, -100)
    (record, *_), with_labels = study.records, nk.walk(
        model, {"input_ids": ids, "attention_mask": mask, "labels": labels}, metric="nll", **grid
    )  # fmt: skip
    masked = nk.walk(model, {"input_ids": ids, "attention_mask": mask, "labels": ids},
                     metric=Weighted("nll", "attention_mask"), **grid)  # fmt: skip
    assert [r.value for r in masked.records] == pytest.approx([r.value for r in with_labels.records], rel=1e-5)
    with torch.no_grad():
        clean = model(ids, mask)
        (site,) = [s for s in nk.sites(model, {"input_ids": ids[:2], "attention_mask": mask[:2]})
                   if s.name == "head:linear#0"]  # fmt: skip
        noisy = nk.perturb(clean, nk.Noise(add=record.level), seed=1, draws=[record.draw], site=site.id)
        p, q = clean.double().log_softmax(-1), noisy.double().log_softmax(-1)
        expected = ((p.exp() * (p - q)).sum(-1) * mask).sum() / mask.sum()
    assert record.value == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("metric", ["accuracy", "nll", "brier", "mean_iou", "ece"])
def test_rows_of_weight_0_say_nothing(metric: str) -> None:
    """Not even where the model gives NaN for them: noise of a row is its own."""
    there = (W > 0).nonzero().flatten()
    some = walked((X[there], Y[there], W[there]), metric, rows=there)
    every = walked((X, Y, W), metric)
    assert [r.value for r in every.records] == pytest.approx([r.value for r in some.records], rel=1e-6)
    assert every.meta.floor == pytest.approx(some.meta.floor) and every.meta.clean == pytest.approx(some.meta.clean)
    equal = nk.walk(MODEL, (X, Y), metric=metric, **GRID)
    ones = walked((X, Y, torch.ones(60)), metric)
    assert [r.value for r in ones.records] == pytest.approx([r.value for r in equal.records], rel=1e-6)


def test_numbers_that_are_none_are_left_out_with_their_weight() -> None:
    def nan_beyond(y: Tensor, t: Tensor) -> Tensor:
        return torch.where(y[:, 0] > 2, torch.nan, (y - t).square().mean(-1))

    metric, t = nk.metrics.ByRow(nan_beyond, higher_is_better=False, name="e"), MODEL(X).detach() + 0.1
    site = next(s for s in nk.sites(MODEL, X[:2]) if s.name == "2:linear#0")
    with pytest.warns(UserWarning, match="rows have an infinite or no weighted e and are left out"):
        study = nk.walk(MODEL, (X, t, W), metric=Weighted(metric), **{**GRID, "sites": [site.name]})
    for r in study.records:
        with torch.no_grad():
            y = nk.perturb(MODEL(X), nk.Noise(add=r.level), seed=1, draws=[r.draw], site=site.id)
        e = nan_beyond(y, t).double()
        there = e.isfinite()
        missing = int((~there & (W > 0)).sum())
        assert r.missing == missing
        assert r.value == pytest.approx(float((W * e)[there].sum() / W[there].sum()), rel=1e-4)
    with pytest.warns(UserWarning, match="make the weighted e infinite"):
        found = nk.chips(MODEL, (X, t, W), metric=Weighted(metric), noise=nk.Noise(add=3.0), draws=2, seed=1)
    assert np.isinf(found.values).all() and "2 of the chips have rows without a finite weighted e" in found.table()


WRONG: dict[str, tuple[Any, str]] = {
    "none": ((X, Y), "walk: data must hold weights, under 'weights' or third in"),
    "no key": ({"input": X, "labels": Y, "other": W}, "walk: data must hold weights, under 'weights'"),
    "negative": ((X, Y, -W), "walk: weights must be finite and not negative"),
    "NaN": ((X, Y, W.log().sqrt()), "walk: weights must be finite and not negative"),
    "infinite": ((X, Y, 1 / W), "walk: weights must be finite and not negative"),
    "all 0": ((X, Y, 0 * W), "walk: weighted nll needs at least one target that counts, got none"),
    "too few": ((X, Y, W[:50]), "walk: data must have as many inputs as weights, got 60 and 50"),
    "of positions": ((X, Y, torch.ones(60, 3)), r"walk: weights of nll must be \[rows\], got \[60, 3\]"),
    "complex": ((X, Y, W + 0j), "walk: weights must be real numbers"),
    "words": ((X, Y, ["a"] * 60), "walk: "),
    "weights alone": ({"weights": W, "labels": Y}, "walk: data must hold inputs beside weights, got 'weights' alone"),
    "two more": ((X, Y, W, W), "walk: data must be"),
    "one class that counts": ((X, Y, (Y == 2).float()), "walk: nll needs labels that differ.*all are 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused(case: str) -> None:
    data, said = WRONG[case]
    with pytest.raises((TypeError, ValueError), match=said):
        walked(data)


def test_measures_that_know_no_weights_are_refused() -> None:
    for metric in (nk.metrics.WholePass(lambda y, t: y.mean(), True), Weighted("nll")):
        with pytest.raises(ValueError, match="Weighted: metric must be of rows, or of sums over them"):
            Weighted(metric)
    with pytest.raises(ValueError, match="Weighted: metric must say its direction"):
        Weighted(lambda y, t: y.mean(-1))
    for key in ("", None, 3):
        with pytest.raises(TypeError, match="Weighted: weights must be their key in the data"):
            Weighted("nll", key)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"weights go with metric=nk\.metrics\.Weighted"):
        nk.walk(MODEL, [(X, Y, W)], metric="nll", **GRID)


def test_a_store_tells_them_from_others(tmp_path: Path) -> None:
    store = tmp_path / "a.db"
    first = walked((X, Y, W), store=store)
    assert walked((X, Y, W), store=store).records == first.records
    for data, metric in (((X, Y, W + 1), Weighted("nll")), ((X, Y), "nll"), ((X, Y, W), Weighted("brier"))):
        with pytest.raises(StoreError):
            nk.walk(MODEL, data, metric=metric, store=store, **GRID)


def test_the_sharpness_of_a_weighted_loss() -> None:
    """Of one batch, by hand; and of more, each with its share of the weights."""
    whole = m_sharpness(MODEL, (X, Y, W), metric=Weighted("nll"), batch_size=60)
    there = W > 0
    one = m_sharpness(MODEL, (X[there], Y[there], W[there]), metric=Weighted("nll"), batch_size=60)
    assert whole == pytest.approx(one, rel=1e-4) and whole > 0
    parts = [slice(0, 25), slice(25, 60)]
    each = [float(m_sharpness(MODEL, (X[p], Y[p], W[p]), metric=Weighted("nll"))) * float(W[p].sum()) for p in parts]
    loader = ((X[p], Y[p], W[p]) for p in parts)  # read once
    assert m_sharpness(MODEL, loader, metric=Weighted("nll")) == pytest.approx(sum(each) / float(W.sum()), rel=1e-4)


# ------------------------------------------------------------------------------------------ intervals


@pytest.mark.parametrize(("law", "draws", "weights"), [
    ("heavy", 1, "uneven"), ("skewed", 2, "uneven"), ("heavy", 2, "few"), ("skewed", 1, "few"), ("shared", 4, "few"),
])  # fmt: skip
def test_intervals_of_weighted_losses_hold_the_truth(law: str, draws: int, weights: str) -> None:
    """At least 93 %: of 60 studies 50 would be more than three sigma below; `bench/question_coverage.py` has more."""
    both = [made_loss(law, draws, seed, weights) for seed in range(60)]
    assert sum(m.low <= truth <= m.high for m, truth in both) >= 51


@pytest.mark.parametrize(("draws", "weights"), [(1, "uneven"), (1, "few"), (2, "few")])
def test_intervals_of_weighted_accuracies_hold_the_truth(draws: int, weights: str) -> None:
    """A weighted accuracy is no binomial share: a few heavy rows may all agree."""
    both = [made_accuracy(draws, seed, weights) for seed in range(60)]
    assert sum(m.low <= truth <= m.high for m, truth in both) >= 53


@pytest.mark.parametrize("weights", ["uneven", "few"])
def test_searches_of_weighted_losses_hold_the_truth(weights: str) -> None:
    shares = uneven(ROWS, weights)
    shares = np.random.default_rng(5).permutation(shares)  # a search looks at rows in an order of their own
    hits = 0
    for seed in range(40):
        made = MadeLoss(seed)

        def give(requests: list[Request], made: MadeLoss = made) -> list[Answer]:
            return [
                (a * shares[r.start : r.end]).astype(np.float32) for a, r in zip(made(requests), requests, strict=True)
            ]

        aim = Aim(Real(), shares * made.clean, None, nk.Drop(0.2), higher_is_better=False, weights=RowWeights(shares))
        one = SiteSearch(SITE, 1.0, aim, 0.05)
        seek([one], give)
        assert one.found is not None and (one.found.status == "ok" or one.found.method == "stopped")
        if one.found.status != "ok":  # says so: it holds nothing
            continue
        truth = (0.2 / float((shares * made.growth).mean())) ** 0.5
        hits += one.found.low <= truth <= one.found.high
    assert hits >= 33


def test_a_spread_knows_what_few_rows_tell() -> None:
    """One row with nearly all the weight: its noise shows from the others alone."""
    rng = np.random.default_rng(0)
    clean, shares = rng.random(200), np.full(200, 0.1)
    shares[0] = 200 - 19.9
    noisy = shares * (clean + rng.standard_normal(200))
    plain, known = (float(spread_given(shares * clean, noisy, s)) for s in (None, shares))
    assert known > 5 * plain
