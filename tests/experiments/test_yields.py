"""Chips: their accuracies are those of a loop over draws; yields and worst chips."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from weight_models import LEVELS, NOISES, SEED, problem, walk

import noisykernels as nk


def test_chips_are_a_loop_over_draws() -> None:
    """Noise inside and at sites together; the same for any cut into passes."""
    model, (x, y) = problem("lenet", 45)
    hardware = {
        "conv*": [nk.WeightNoise(add=0.3, relative="channel")],
        "fc*": [nk.WeightNoise(mul=1.0), nk.hardware.DAC(4, "row")],
    }
    noise = {"relu*": nk.Noise(add=0.5)}
    draws = [5, 0, 9]
    found = nk.chips(model, (x, y), hardware=hardware, noise=noise, draws=draws, seed=3)
    with nk.inject(model, noise, hardware=hardware, example_input=x[:2]), torch.no_grad():
        for k, draw in enumerate(draws):
            with nk.noise_state(model, seed=3, draws=[draw], rows=range(45)):
                assert found.values[k] == float((model(x).argmax(1) == y).double().mean())
    assert (found.clean, found.rows, found.draws, found.seed) == (1.0, 45, (5, 0, 9), 3)
    assert len(set(found.values)) > 1 and found.values.max() < 1
    for compute in (nk.Compute(batch_rows=7), nk.Compute(draws_per_pass=1), nk.Compute(batch_rows=1, draws_per_pass=3)):
        again = nk.chips(model, (x, y), hardware=hardware, noise=noise, draws=draws, seed=3, compute=compute)
        assert (again.values == found.values).all()
    order = torch.randperm(45)
    mixed = nk.chips(model, (x[order], y[order]), hardware=hardware, noise=noise, draws=draws, seed=3, rows=order)
    assert (mixed.values == found.values).all()
    other = nk.chips(model, (x, y), hardware=hardware, draws=draws, seed=3)
    assert (other.values != found.values).any()  # the sites' noise counts
    parts = [nk.chips(model, (x[s], y[s]), hardware=hardware, draws=draws, seed=3) for s in (slice(0, 9), slice(9, 45))]
    assert np.allclose((9 * parts[0].values + 36 * parts[1].values) / 45, other.values)


def test_chips_of_one_layer_are_a_walk_over_weights() -> None:
    model, data = problem("lenet", 45)
    study = walk(model, data, levels=[2.0], draws=6, sites="conv2")
    found = nk.chips(model, data, hardware={"conv2": [NOISES["layer"].scaled(2.0)]}, draws=6, seed=SEED)
    assert [r.accuracy for r in study.records] == found.values.tolist()
    table = found.to_pandas()
    assert table["correct"].tolist() == [r.correct for r in study.records] and set(table["rows"]) == {45}


class Breaks(nk.hardware.Device):
    """Chips with an odd number give NaN."""

    def output(self, y: Tensor, draw: nk.hardware.Draw) -> Tensor:
        return y * math.nan if draw.id is not None and int(draw.id) % 2 else y


def test_scores_that_are_nan_count_as_wrong_and_the_model_is_left_alone() -> None:
    model, data = problem("mlp", 30)
    model.train()
    seen: list[tuple[int, int]] = []
    before = {k: id(v) for k, v in model.state_dict(keep_vars=True).items()}
    found = nk.chips(
        model,
        data,
        hardware=[Breaks()],
        draws=4,
        seed=1,
        progress=lambda *at: seen.append(at),
        compute=nk.Compute(batch_rows=15),
    )
    assert found.values.tolist() == [1.0, 0.0, 1.0, 0.0] and seen[-1][0] == seen[-1][1] == len(seen)
    assert model.training and {k: id(v) for k, v in model.state_dict(keep_vars=True).items()} == before
    assert not any("noise" in k for k in vars(model))


def test_expected_worst_is_that_of_all_subsets() -> None:
    accuracy = np.random.default_rng(0).random(9).round(2)  # with ties
    for count in range(1, 10):
        brute = np.mean([min(some) for some in itertools.combinations(accuracy, count)])
        assert nk.experiments.worst_of(accuracy, count) == pytest.approx(brute, abs=1e-11)
    found = nk.experiments.Chips(accuracy, 0.9, 100, tuple(range(9)), 0)
    assert found.worst_of(1) == pytest.approx(found.mean) and found.worst_of(9) == pytest.approx(found.worst)
    for bad in (0, 10, -1):
        with pytest.raises(ValueError, match=rf"worst_of: count must lie in 1..9, got {bad}"):
            found.worst_of(bad)


def test_yield_has_the_interval_of_a_proportion() -> None:
    accuracy = np.array([0.5, 0.8, 0.8, 0.9, 0.95])
    found = nk.experiments.Chips(accuracy, 0.96, 100, tuple(range(5)), 0)
    share, low, high = found.yield_at(0.8)
    assert share == 0.8 and low < share < high
    # Wilson: where the score test of the proportion is at its critical value.
    for edge in (low, high):
        assert abs(share - edge) / math.sqrt(edge * (1 - edge) / 5) == pytest.approx(1.959964, rel=1e-5)
    assert found.yield_at(0.96)[:2] == (0.0, 0.0) and found.yield_at(0.0)[::2] == (1.0, 1.0)
    narrow = found.yield_at(0.8, confidence=0.5)
    assert low < narrow[1] < share < narrow[2] < high
    text = found.table(limits=[0.8])
    assert (
        "clean accuracy 0.9600, 100 rows, 5 chips, seed 0" in text
        and f"yield at 0.8000: 0.800   (95 %: {low:.3f}" in text
    )
    assert found.table().count("yield at") == 3
    for clean in (0.0, 1e-15):  # of which no share says anything: of outputs against themselves
        of_clean = nk.experiments.Chips(np.array([0.1, 0.2]), clean, 9, (0, 1), 0, "kl", higher_is_better=False)
        assert "yield at" not in of_clean.table() and of_clean.table(limits=[0.15]).count("yield at 0.1500: 0.500") == 1
        assert "yield at" not in of_clean.plot().axes[0].get_legend().get_texts()[-1].get_text()
    one = nk.experiments.Chips(accuracy[:1], 0.96, 100, (0,), 0)
    assert math.isnan(one.std) and one.worst == 0.5 and "deviation" in one.table()


def test_errors_of_chips() -> None:
    model, data = problem("mlp", 10)
    hardware = [NOISES["add"]]
    for wrong, said in (
        (lambda: nk.chips(model, data, seed=1), "chips: give hardware, or noise, or both: without them all chips are"),
        (lambda: nk.chips(model, data, hardware=hardware, draws=0, seed=1), "chips: draws must be a whole"),
        (lambda: nk.chips(model, data, hardware=hardware, draws=[1, 1], seed=1), "chips: draws"),
        (lambda: nk.chips(model, data, hardware=hardware, seed=-1), "chips: seed"),
        (lambda: nk.Compute(batch_rows=0), "batch_rows"),
        (lambda: nk.Compute(draws_per_pass=0), "draws_per_pass"),
        (lambda: nk.chips(model, (data[0], data[1][:3]), hardware=hardware, seed=1), "chips: "),
        (lambda: nk.chips(model, data, hardware={"conv9": hardware}, seed=1), "matches no site"),
        (lambda: nk.chips(nn.Flatten(), (torch.ones(4, 2, 2, 2), torch.zeros(4, dtype=torch.int64) + 9),
                          noise=nk.Noise(add=1.0), seed=1), "chips: labels must lie in"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            wrong()
    with nk.inject(model, None), pytest.raises(ValueError, match="injected already"):
        nk.chips(model, data, hardware=hardware, seed=1)


def test_chips_of_a_study() -> None:
    pytest.importorskip("pandas")
    model, data = problem("lenet", 40)
    study = walk(model, data, draws=5)
    table = study.chips(limit=0.8)
    assert list(table.columns) == ["site", "site_index", "level", "chips", "mean", "std", "worst", "best", "yield"]
    assert len(table) == 5 * len(LEVELS) and list(dict.fromkeys(table["site_index"])) == [1, 5, 9, 12, 15]
    for line in table.itertuples():
        accuracy = np.array([r.accuracy for r in study.records if (r.site, r.level) == (line.site, line.level)])
        assert line.chips == len(accuracy) == 5 and line.mean == pytest.approx(accuracy.mean())
        assert line.std == pytest.approx(accuracy.std(ddof=1)) and (line.worst, line.best) == (
            accuracy.min(),
            accuracy.max(),
        )
        assert line[-1] == np.mean(accuracy >= 0.8)
    assert study.chips().equals(study.chips(0.95 * study.meta.clean))
    searched = walk(model, data, levels=None, draws=None, sites="fc3", rel_ci=0.5)
    with pytest.raises(
        ValueError, match=r"chips: an adaptive study has no chips to compare: give walk levels and draws"
    ):
        searched.chips()
