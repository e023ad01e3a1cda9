"""Walks asked other questions, of other measures: searches and grids agree, targets are hit, nothing is in vain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import noisykernels as nk
from noisykernels.walking import walk_parameter

QUIET = nk.Compute(threads=1)


@pytest.fixture(scope="module")
def regressor():
    torch.manual_seed(0)
    x = torch.randn(500, 5)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1) + 0.05 * torch.randn(500, 2)
    model = nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, 2))
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    return model.eval(), (x, y)


def sureness(scores, labels):
    """A measure of one's own, which has no floor."""
    return scores.softmax(1).amax(1)


def walked(made, **options):
    model, data = made
    options = {"noise": nk.Noise(add=1.0), "seed": 3, "compute": QUIET} | options
    return nk.walk(model, data, **options)


def loop(made, site: str, level: float, draws: int, measure) -> float:
    """The mean over many draws of another seed, by a plain loop."""
    model, (x, y) = made
    values = []
    with torch.no_grad(), nk.inject(model, {site: nk.Noise(add=level)}):
        for draw in range(draws):
            with nk.noise_state(model, seed=10**6, draws=torch.tensor([draw])):
                values.append(float(measure(model(x), y)))
    return float(np.mean(values))


@pytest.mark.parametrize(("metric", "at"), [("nll", nk.Ratio(1.2)), ("nll", nk.Keep(0.9)), ("accuracy", nk.Drop(0.03))])
def test_a_searched_level_hits_its_target(classifier, metric, at) -> None:
    """At the level found, what is measured is what was asked for: within the interval's ends, and a little more."""
    study = walked(classifier, metric=metric, at=at, sites=["0:linear#0"])
    (found,) = study.midpoints()
    assert (found.status, found.word, study.meta.at) == ("ok", "tolerance", at)
    measure = nn.functional.cross_entropy if metric == "nll" else lambda s, y: (s.argmax(1) == y).float().mean()
    low, high = (loop(classifier, "0:linear#0", v, 150, measure) for v in (found.low * 0.98, found.high * 1.02))
    assert min(low, high) < found.target < max(low, high)


@pytest.mark.parametrize("at", [nk.Ratio(2.0), "half"])
def test_a_regressor_is_searched(regressor, at) -> None:
    study = walked(regressor, metric="mse", at=at, search=nk.Search(rel_ci=0.1))
    for found in study.midpoints():
        assert found.status == "ok" and found.low < found.level < found.high
        low, high = (
            loop(regressor, found.site, v, 60, nn.functional.mse_loss) for v in (found.low / 1.03, found.high * 1.03)
        )
        assert low < found.target < high
    grid = walked(regressor, metric="mse", at=at, levels=np.logspace(-3, 2, 26).tolist(), draws=5)
    for one, other in zip(study.midpoints(), grid.midpoints(), strict=True):
        assert one.low <= other.high and other.low <= one.high


def test_a_site_goes_on_from_what_a_store_has(classifier, tmp_path: Path) -> None:
    """Questions share their cells: a store that one search has filled serves another, and gives what none gives."""
    store = tmp_path / "s.db"
    first = walked(classifier, metric="nll", at="ratio:1.2", store=store, sites=[0])
    assert walked(classifier, metric="nll", at="ratio:1.2", store=store, sites=[0]).midpoints() == first.midpoints()
    other = walked(classifier, metric="nll", at="drop:0.3", store=store, sites=[0])
    assert other.midpoints() == walked(classifier, metric="nll", at="drop:0.3", sites=[0]).midpoints()


@pytest.mark.parametrize("grid", [{}, {"levels": [0.1, 1.0], "draws": 2}])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "nll", "at": "ratio:0.9"}, r"^walk: the clean nll .* must be below .*at=nk.Ratio\(0.9\)"),
        ({"at": nk.Value(1.0)}, r"^walk: the clean accuracy .* must be above the 1 that at=nk.Value\(1.0\)"),
        ({"at": nk.Drop(1.0)}, "^walk: accuracy is never as low as"),
        ({"metric": "token_accuracy", "at": nk.Drop(1.1)}, "^walk: token_accuracy is never as low as"),
        ({"metric": "brier", "at": nk.Value(3.0)}, "^walk: brier is never as high as"),
        ({"at": nk.Keep(0.9), "floor": 0.99}, r"^walk: the clean accuracy .* is not above the floor 0.99"),
        ({"metric": nk.metrics.ByRow(sureness, higher_is_better=True), "at": nk.Keep(0.9)}, "has no floor of its own"),
        ({"at": "most"}, "^walk: at must be 'half'"),
    ],
)
def test_questions_without_an_answer_cost_nothing(classifier, tmp_path: Path, options, said, grid) -> None:
    with pytest.raises(ValueError, match=said):
        walked(classifier, **options, **grid, store=tmp_path / "s.db")
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match=r"^walk: at must be"):
        walked(classifier, at=0.9, **grid)


def test_a_measure_without_a_floor_has_a_grid_and_is_asked_later(classifier) -> None:
    measure = nk.metrics.ByRow(sureness, higher_is_better=True)
    study = walked(classifier, metric=measure, levels=[0.1, 1.0, 10.0], draws=2)
    with pytest.raises(ValueError, match=r"no floor of its own.*nk.Drop\("):
        study.table()
    assert "tolerance" in study.table(at=nk.Ratio(0.95))


def test_mixed_noise_and_parameters_follow_it(classifier) -> None:
    model, data = classifier
    mixed = nk.walk_mixed(
        model, data, ratios=[0.5, 1.0], levels=[0.01, 0.1, 1.0], draws=2, seed=1, metric="nll", at="ratio:1.2"
    )
    assert [s.meta.at for s in mixed.studies] == [nk.Ratio(1.2)] * 2 and "tolerance" in mixed.studies[0].table()
    mixed.plot()
    study = walk_parameter(
        model, data, lambda bits: [nk.hardware.DAC(int(bits), "row")], [2, 3, 4, 6, 8], name="bits", axis="linear",
        seed=1, metric="nll", at=nk.Ratio(1.1),
    )  # fmt: skip
    for found in study.midpoints():
        assert found.rising and (found.status != "ok" or found.low <= found.level <= found.high)
    assert study.report and "tolerance" in study.table()


def test_half_of_the_accuracy_is_asked_as_ever(classifier) -> None:
    """Said or not, it is the same study."""
    assert walked(classifier, at="half", sites=[1]) == walked(classifier, sites=[1])
