"""Voting: the whole against single executions."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import noisykernels as nk
from noisykernels.datasets import vision as data
from noisykernels.experiments import vote
from noisykernels.stats import executions_needed, majority, mean_scores
from noisykernels.stats.votes import KINDS
from noisykernels.training import train
from noisykernels.zoo import networks as models

# ------------------------------------------------------------------------------------------ the whole


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    model = models.MLP(64, 10, width=32, hidden=2)
    train(model, data.load("digits", "train"), epochs=8, lr=5e-3)
    x, y = data.load("digits", "test")
    return model, (x[:300], y[:300])


def one_by_one(model, pairs, noise, where, seed, ids, rows) -> np.ndarray:
    """Scores [D, rows, classes], one execution after the other."""
    out = []
    for d in ids:
        with nk.inject(model, noise, where), nk.noise_state(model, seed=seed, draws=[d], rows=rows):
            with torch.inference_mode():
                out.append(model.eval()(pairs[0]))
    return torch.stack(out).numpy()


def test_vote_equals_executions_one_by_one(digits) -> None:
    model, (x, y) = digits
    noise, ids, rows = nk.Noise(add=1.0), [3, 0, 9, 4], list(range(1000, 1300))
    model.train()
    votes = vote(
        model,
        (x, y),
        noise=noise,
        draws=ids,
        seed=5,
        rows=rows,
        subsets=3,
        compute=nk.Compute(batch_rows=300, draws_per_pass=1),
    )
    assert model.training and not votes.clean < 0.8
    scores, labels = one_by_one(model, (x, y), noise, None, 5, ids, rows), y.numpy()
    assert np.array_equal(votes.curves["majority"].values, majority(scores.argmax(2), labels, 10))
    for kind in KINDS[1:]:
        expected = mean_scores(scores, labels, kind=kind, subsets=3, seed=5)
        assert all(np.allclose(a, b, atol=1e-12) for a, b in zip(votes.curves[kind], expected, strict=True))
    with torch.no_grad():
        assert votes.clean == (model(x).argmax(1) == y).double().mean()
    # other plans may move a prediction at a boundary, no more
    other = vote(
        model,
        (x, y),
        noise=noise,
        draws=ids,
        seed=5,
        rows=rows,
        subsets=3,
        compute=nk.Compute(batch_rows=70, draws_per_pass=3),
    )
    for kind in KINDS:
        assert np.abs(other.curves[kind].values - votes.curves[kind].values).max() < 2 / 300


def test_voting_helps_and_only_the_kinds_asked_for_are_there(digits) -> None:
    model, pairs = digits
    steps = []
    votes = vote(model, pairs, noise=nk.Noise(add=1.5), draws=21, seed=1, progress=lambda i, n: steps.append((i, n)))
    for kind in KINDS:
        c = votes.curves[kind]
        assert c.values[20] > c.values[4] > c.values[0] + 3 * c.error[0]
        assert 0 < c.error.min() and c.error.max() < 0.03
        assert executions_needed(c, c.values[0] + 0.05) > 1
    first = [votes.curves[kind].values[0] for kind in KINDS]
    assert first == pytest.approx([first[0]] * 3, abs=1e-12)
    assert steps == [(i, 3) for i in (1, 2, 3)]
    alone = vote(model, pairs, noise=nk.Noise(add=1.5), draws=21, seed=1, kinds=["logit"])
    assert list(alone.curves) == ["logit"]
    assert np.array_equal(alone.curves["logit"].values, votes.curves["logit"].values)


def test_where_and_how_often(digits) -> None:
    model, (x, y) = digits
    common = dict(draws=3, seed=2, kinds="majority", compute=nk.Compute(batch_rows=300))

    def accuracy(noise, **options):
        return vote(model, (x, y), noise=noise, **common, **options).curves["majority"].values

    loud = nk.Noise(add=4.0)
    by_name = accuracy(loud, sites="relu*")
    indices = [s.index for s in nk.sites(model, x[:2]) if s.kind == "relu"]
    assert np.array_equal(by_name, accuracy(loud, sites=indices))
    assert np.array_equal(by_name, accuracy({"relu*": loud}))
    everywhere = accuracy(loud)
    assert everywhere[0] < by_name[0] and everywhere[0] < accuracy(loud, repeats=16)[0]
    assert np.array_equal(accuracy(loud, repeats=4), accuracy(nk.Noise(add=2.0)))  # 4 / sqrt(4)
    clean = vote(model, (x, y), noise=nk.Noise(), draws=3, seed=2)
    assert all(np.array_equal(c.values, [clean.clean] * 3) for c in clean.curves.values())


def test_layers_of_the_model_keep_their_noise() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nk.NoisyLinear(5, 3, noise=nk.Noise(add=3.0)))
    x = torch.randn(80, 5)
    y = (x @ model[0].weight.T + model[0].bias).argmax(1)
    votes = vote(model, (x, y), noise=None, draws=9, seed=0)
    assert votes.clean == 1 and 0.34 < votes.curves["logit"].values[0] < 0.9


def test_nan_votes_for_nobody() -> None:
    class Odd(nn.Module):
        """NaN for rows whose noise is above a bound."""

        def forward(self, x):
            return torch.cat([x, torch.where(x > 0.5, torch.nan, -x)], 1)

    x, y = torch.full((200, 1), 0.1), torch.zeros(200, dtype=torch.int64)
    votes = vote(Odd(), (x, y), noise=nk.Noise(add=1.0), draws=5, seed=0, sites="input")
    with nk.inject(model := Odd(), nk.Noise(add=1.0), "input"), nk.noise_state(model, seed=0, draws=range(5)):
        scores = model(x).view(5, 200, 2).numpy()
    best = np.where(np.isnan(scores).any(2), -1, scores.argmax(2))
    assert (best == -1).any()
    assert np.array_equal(votes.curves["majority"].values, majority(best, y.numpy(), 2))
    assert np.allclose(votes.curves["logit"].values, mean_scores(scores, y.numpy(), seed=0).values)


def test_table_frame_and_picture(digits, monkeypatch) -> None:
    model, pairs = digits
    votes = vote(model, pairs, noise=nk.Noise(add=1.0), draws=12, seed=0)
    title, covered, *lines = votes.table().splitlines()
    assert title == f"clean accuracy {votes.clean:.4f}, 300 rows, 12 draws, seed 0"
    assert covered == "noise after 100.0 % of the multiply-adds"
    assert lines[0].split() == ["executions", *KINDS] and len({len(line) for line in lines}) == 1
    assert [int(line.split()[0]) for line in lines[2:]] == [*range(1, 11), 12]
    assert float(lines[4].split()[4]) == round(votes.curves["logit"].values[2], 4)
    pandas = pytest.importorskip("pandas")
    frame = votes.to_pandas()
    assert list(frame.columns) == ["kind", "executions", "accuracy", "error"] and len(frame) == 36
    assert frame[frame.kind == "logit"].accuracy.tolist() == votes.curves["logit"].values.tolist()
    assert isinstance(frame, pandas.DataFrame)
    ax = Figure().subplots()
    assert votes.plot(ax) is ax.figure and isinstance(votes.plot(), Figure)
    drawn = {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}
    assert list(drawn) == list(KINDS) and len(ax.collections) == 3
    for kind, line in drawn.items():
        assert np.array_equal(line.get_ydata(), votes.curves[kind].values)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(KINDS)
    assert "executions" in ax.get_xlabel() and "accuracy" in ax.get_ylabel()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"noisykernels\[table\]"):
        votes.to_pandas()


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"draws": 0}, ValueError, "vote: draws must be a whole number from 1"),
        ({"draws": [1, 1]}, ValueError, "vote: draws .* ids that differ"),
        ({"seed": -1}, ValueError, "vote: seed must be a whole number from 0"),
        ({"kinds": []}, ValueError, "vote: kinds must be some of"),
        ({"kinds": ["logit", "logit"]}, ValueError, "vote: kinds .* each once"),
        ({"kinds": "plurality"}, ValueError, "vote: kinds must be some of .* got 'plurality'"),
        ({"noise": None}, ValueError, "vote: noise is None, there is no hardware, and the model has no noisy layer"),
        ({"noise": 0.1}, TypeError, "noise must be a Noise, a function, a dict or None, got 0.1"),
        ({"noise": {"input": nk.Noise(add=1.0)}, "sites": "input"}, ValueError, "vote: a dict of noises .* sites="),
        ({"noise": {"nothing": nk.Noise(add=1.0)}}, ValueError, "'nothing' matches no site"),
        ({"sites": ["nothing"]}, ValueError, "vote: no site 'nothing'; the model has 0 input"),
        ({"sites": 99}, ValueError, "vote: no site 99"),
        ({"compute": 3}, TypeError, "vote: compute must be a Compute or None, got 3"),
        ({"compute": nk.Compute(executor=2)}, ValueError, "vote: of compute it takes .*, got executor=2"),
        ({"subsets": -2}, ValueError, "vote: subsets .* got -2"),
        ({"rows": [0]}, ValueError, "vote: rows must hold one id for each of 6 rows, got 1"),
        ({"data": (torch.zeros(6, 4), torch.full((6,), 7))}, ValueError, "vote: labels must lie in 0..2, got 7..7"),
        ({"data": torch.zeros(6, 4)}, ValueError, "vote: data must hold labels"),
        ({"model": nn.Sequential(nn.Unflatten(1, (2, 2)))}, ValueError, r"vote: the model must give scores of shape"),
    ],
)
def test_vote_refuses(options, error, message) -> None:
    model = models.MLP(4, 3, width=4)
    given = {"model": model, "data": (torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64))}
    given |= {"noise": nk.Noise(add=1.0), "draws": 2, "seed": 0} | options
    with pytest.raises(error, match=message):
        vote(given.pop("model"), given.pop("data"), **given)
    assert type(model) is models.MLP  # nothing of the injection is left
