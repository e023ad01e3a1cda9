"""The walk: against a loop over injections, plans, subsets, what it leaves behind, real data."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch
from options import gathered
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import noisykernels as nk
from noisykernels.datasets import vision as data
from noisykernels.training import accuracy, train
from noisykernels.zoo import networks as models

NOISE = nk.Noise(add=1.0)
LEVELS = [0.0, 0.3, 3.0]


def problem(norm: bool = True) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = models.MLP(12, 4, width=8, hidden=2, norm=norm)
    return model, (torch.randn(60, 12), torch.randint(4, (60,)))


def walk(model, pairs, **options) -> nk.Study:
    settings = dict(noise=NOISE, levels=LEVELS, draws=2, seed=7, threads=1) | options
    return nk.walk(model, pairs, **gathered(settings))


def counts(study: nk.Study) -> dict[tuple[str, float, int], int]:
    return {(r.site, r.level, r.draw): r.correct for r in study.records}


def predictions(model, x, noise, where, seed, draws, rows=None) -> Tensor:
    with nk.inject(model, noise, where), nk.noise_state(model, seed=seed, draws=draws, rows=rows):
        with torch.inference_mode():
            return model(x)


@pytest.mark.parametrize("noise", [NOISE, nk.Noise(mul=1.0), nk.Noise.amplitude(1.0, 0.3, order="add_mul")], ids=str)
def test_equals_a_loop_over_injections(noise: nk.Noise) -> None:
    model, (x, y) = problem()
    study = walk(model, (x, y), noise=noise, batch_rows=60)
    model.eval()
    expected = {}
    for site in nk.sites(model, x[:2]):
        for level in LEVELS:
            scores = predictions(model, x, noise.scaled(level), site.name, 7, [0, 1], range(60))
            hits = (scores.argmax(1).view(2, 60) == y).sum(1).tolist()
            expected |= {(site.name, level, d): hits[d] for d in (0, 1)}
    assert counts(study) == expected and len(expected) == 8 * 3 * 2
    assert study.meta.clean_correct == int((model(x).argmax(1) == y).sum())
    clean = [r.correct for r in study.records if r.level == 0]
    assert clean == [study.meta.clean_correct] * len(clean)


def test_draws_are_independent_of_each_other_and_of_the_plan() -> None:
    """Equal counts for the same plan; other plans may only move predictions at a boundary."""
    model, pairs = problem()
    plan = dict(batch_rows=30, draws_per_pass=1)
    together = counts(walk(model, pairs, draws=[0, 5, 2], **plan))
    for d in (0, 5, 2):
        alone = counts(walk(model, pairs, draws=[d], **plan))
        assert alone == {k: v for k, v in together.items() if k[2] == d}
    # Contractions of at most 12 terms round differently for other sizes of a pass: by less than
    # 12 * 2^-24 of their magnitude, far below the margin of all but very few predictions.
    moved = 0
    for plan in (dict(batch_rows=7), dict(batch_rows=60, draws_per_pass=3), dict(batch_rows=1)):
        other = counts(walk(model, pairs, draws=[0, 5, 2], **plan))
        moved += sum(abs(other[k] - v) for k, v in together.items())
    assert moved <= 3 * len(together) * 60 * 1e-4


def test_scores_of_two_plans_differ_by_roundings_alone() -> None:
    """So a prediction can differ only where two scores are closer than twice the bound."""
    model, (x, _) = problem()
    model.eval()
    whole = predictions(model, x, NOISE, "fc1", 7, [0, 1], range(60)).view(2, 60, 4)
    parts = [
        predictions(model, a, NOISE, "fc1", 7, [0, 1], r).view(2, -1, 4)
        for a, r in zip(x.split(7), torch.arange(60).split(7), strict=True)
    ]
    split = torch.cat(parts, 1)
    # Four layers, sums of up to 12 terms: 48 roundings of the largest score, times 4 for growth.
    bound = 4 * 4 * 12 * 2.0**-24 * whole.abs().max()
    assert ((whole - split).abs() <= bound).all()
    with torch.inference_mode():
        noise = (whole - model(x)).abs()
    assert ((noise > 100 * bound).float().mean(dim=(1, 2)) > 0.9).all()  # other noise would be seen


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, range(8)), ([0, 3], [0, 3]), ("fc*", [1, 4, 7]), (["relu1", 7], [3, 7]),
        (["*:batch_norm", "input"], [0, 2, 5]), (4, [4]), ([3, "relu1"], [3]), (np.int64(4), [4]),
        (np.array([0, 3]), [0, 3]),
    ],
    ids=str,
)  # fmt: skip
def test_sites(chosen, expected) -> None:
    model, pairs = problem()
    study = walk(model, pairs, sites=chosen, levels=[1.0], draws=1)
    assert [r.site_index for r in study.records] == list(expected)


def test_rows_are_data_set_indices() -> None:
    """A shuffled subset with its indices gives each row the noise that it has in the whole."""
    model, (x, y) = problem()
    order = torch.randperm(60)
    plan = dict(sites=["relu1"], levels=[1.0], batch_rows=60)
    a = walk(model, (x[order], y[order]), rows=order, **plan)
    assert counts(a) == counts(walk(model, (x, y), **plan))
    assert counts(walk(model, (x[order], y[order]), **plan)) != counts(a)


def test_data_in_every_form() -> None:
    model, (x, y) = problem()
    expected = counts(walk(model, (x, y), levels=[0.5]))
    loader = DataLoader(TensorDataset(x, y), batch_size=16)
    batches = [(a, b) for a, b in loader]
    arrays = [(a.numpy(), b.numpy()) for a, b in batches]
    for form in ([x, y], loader, batches, iter(batches), arrays, (x, y.int())):
        assert counts(walk(model, form, levels=[0.5])) == expected


def state_of(model: nn.Module) -> list:
    return [
        (type(m), m.training, {k: id(v) for k, v in vars(m).items()}, len(m._forward_hooks)) for m in model.modules()
    ]


class Stops:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __call__(self, done: int, total: int) -> None:
        if done == 4:
            raise self.error


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_leaves_the_model_as_it_was(error) -> None:
    model, pairs = problem()
    model.norm1.eval()  # a module with a mode of its own
    keys = {k: v.clone() for k, v in model.state_dict().items()}
    before, generator, threads = state_of(model), torch.get_rng_state(), torch.get_num_threads()
    with pytest.raises(error) if error else contextlib.nullcontext():
        walk(model, pairs, progress=Stops(error) if error else False)
    assert state_of(model) == before and torch.get_num_threads() == threads
    assert all(torch.equal(v, keys[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    model(pairs[0]).sum().backward()  # still trains


@pytest.mark.parametrize("draws", [2, np.int64(2), torch.tensor(2), np.arange(2), torch.arange(2), range(2)], ids=repr)
def test_draws_in_every_form(draws) -> None:
    model, pairs = problem()
    study = walk(model, pairs, sites=["fc1"], draws=draws, batch_rows=np.int64(30), draws_per_pass=np.int32(1))
    assert study.meta.draws == (0, 1) and counts(study) == counts(walk(model, pairs, sites=["fc1"], batch_rows=30))


@pytest.mark.parametrize("draws", [np.array([1]), torch.tensor([1])], ids=repr)
def test_a_vector_of_one_draw_is_an_id(draws) -> None:
    model, pairs = problem()
    assert walk(model, pairs, sites=["fc1"], draws=draws).meta.draws == (1,)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(levels=["a"]), "walk: each item of levels must be a finite number of at least 0, got 'a'"),
        (dict(levels=[[0.1], 0.2]), r"walk: each item of levels must be a finite number of at least 0, got \[0.1\]"),
        (dict(levels=None), "walk: give both levels and draws for a grid, or neither"),
        (dict(draws=["a"]), r"walk: each item of draws must be a whole number from 0 to 2\^32 - 1, got 'a'"),
        (dict(draws=2.0), "walk: draws must be a whole number from 1 to 1000000, a list, a tensor or None, got 2.0"),
        (dict(draws=None), "walk: give both levels and draws for a grid, or neither"),
        (dict(engine="fast"), "Compute: engine must be one of auto, shared, plain, got 'fast'"),
        (dict(levels=None, draws=None, rel_ci=0.0), "Search: rel_ci must lie between 0 and 1, got 0.0"),
        (dict(draws=[]), r"walk: draws must be at least one, or ids that differ, got \[\]"),
        (dict(batch_rows=2.5), "Compute: batch_rows must be a whole number from 1 to .*, got 2.5"),
        (dict(draws_per_pass="2"), "Compute: draws_per_pass must be a whole number from 1 to .*, got '2'"),
    ],
    ids=str,
)
def test_errors_name_the_argument(options, text) -> None:
    model, pairs = problem()
    with pytest.raises((ValueError, TypeError), match=f"^{text}"):
        walk(model, pairs, **options)


def test_levels_stay_finite_in_the_type_of_the_noise() -> None:
    """float32 unless the data are float64; a level beyond would make every prediction NaN."""
    model, (x, y) = problem()
    with pytest.raises(ValueError, match=r"^walk: `add` of the noise times level 1e\+39 exceeds float32's range$"):
        walk(model, (x, y), levels=[1.0, 1e39])
    with pytest.raises(ValueError, match=r"`mul` .* exceeds float32's range$"):
        walk(model.bfloat16(), (x.bfloat16(), y), levels=[1e20], noise=nk.Noise(mul=1e20))
    double = walk(model.double(), (x.double(), y), levels=[1e39], sites=["fc1"])
    assert len(double.records) == 2
    with pytest.raises(ValueError, match=r"level 1e\+200 times factor 1e\+200 is not finite"):
        walk(model, (x.double(), y), levels=[1e200], noise=nk.Noise(add=1e200))


class Mixing(nn.Module):
    """Rows of one value become columns of another, whose sites have no row dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        gram = torch.sigmoid(x @ x.T)
        return self.fc(x) + 0.01 * gram.relu().sum()


def test_sites_that_mix_rows_are_left_out_or_refused_before_anything_runs() -> None:
    _, pairs = problem()
    seen: list[int] = []
    plan = dict(levels=[1.0], draws=1, progress=lambda done, total: seen.append(done))
    for sites in (":sigmoid", ["fc", ":relu#0"]):
        with pytest.raises(RuntimeError, match=r"^walk: rows .* ':(sigmoid|relu)#0', .* sites=") as info:
            walk(Mixing(), pairs, sites=sites, **plan)
        assert not seen and "fc" not in str(info.value)
    with pytest.warns(UserWarning, match=r"^walk: rows .* ':matmul#0', ':sigmoid#0', ':relu#0': left out"):
        assert {r.site for r in walk(Mixing(), pairs, **plan).records} == {"input", "fc:linear#0"}
    assert len(walk(Mixing(), pairs, sites=["input", "fc"], **plan).records) == 2 and seen == [1, 2] * 2


def test_progress() -> None:
    model, pairs = problem()
    seen: list[tuple[int, int]] = []
    walk(
        model,
        pairs,
        sites=["fc1", "relu1"],
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(i, 6) for i in range(1, 7)]


def test_noisy_layers_of_the_model_are_silent_but_walked() -> None:
    torch.manual_seed(0)
    noisy = nn.Sequential(nk.NoisyLinear(12, 8, noise=nk.Noise(add=50.0)), nn.ReLU(), nn.Linear(8, 4))
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    pairs = problem()[1]
    a, b = walk(noisy, pairs), walk(plain, pairs)
    assert counts(a) == counts(b) and a.meta.clean_correct == b.meta.clean_correct


def test_dtypes() -> None:
    model, (x, y) = problem()
    single = walk(model, (x, y), levels=[0.5])
    double = walk(model.double(), (x.double(), y), levels=[0.5])
    differing = sum(abs(a.correct - b.correct) for a, b in zip(single.records, double.records, strict=True))
    assert differing <= 2
    half = walk(model.bfloat16(), (x.bfloat16(), y), levels=[0.5])
    assert len(half.records) == len(single.records)


def test_study_says_how_it_came_about() -> None:
    model, pairs = problem()
    study = walk(model, pairs, sites=["fc1"], description=("net", "made"), floor=0.2, axis="linear")
    m = study.meta
    assert (m.seed, m.rows, m.classes, m.draws, m.levels) == (7, 60, 4, (0, 1), tuple(LEVELS))
    assert (m.model, m.data, m.floor, m.axis) == ("net", "made", 0.2, "linear")
    assert len(m.sites) == 8 and m.stream_version == nk.STREAM_VERSION
    assert {"batch_rows", "draws_per_pass", "threads", "torch", "cpu_level", "device"} <= set(m.plan)
    assert m.noise == {"kind": "gaussian", "mode": "add", "fold": False, "add": 1.0, "mul": 0.0}


def test_one_row_and_compiled_and_wrapped_models() -> None:
    model, (x, y) = problem()
    study = walk(model, (x[:1], y[:1]), levels=[0.1], draws=1)
    assert len(study.records) == 8
    expected = counts(walk(model, (x, y), levels=[0.5]))
    compiled = torch.compile(model, backend="eager")
    for wrapped in (nn.DataParallel(model), compiled):
        assert counts(walk(wrapped, (x, y), levels=[0.5])) == expected


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The MLP of the study on scikit-learn's digits, trained for a few seconds."""
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    model = models.build("mlp", (1, 8, 8))
    train(model, data.load("digits", "train"), epochs=8, lr=3e-3)
    return model.eval(), data.load("digits", "test")


def test_sanity_on_digits(digits) -> None:
    """Clean at level 0, chance at a huge one, falling between, and a midpoint for every site."""
    model, (x, y) = digits
    assert accuracy(model, (x, y)) > 0.85
    levels = [0.0, 1e-3, *torch.logspace(-1, 2.5, 8).tolist(), 1e6]
    study = nk.walk(model, (x, y), noise=NOISE, levels=levels, draws=2, seed=0)
    n = len(y)
    for curve in study.curves():
        assert curve.mean[0] == study.meta.clean
        # An average over n rows and two draws near chance: 0.1 +- six standard deviations, and what
        # a constant answer to the most frequent class can give.
        most = y.bincount().max().item() / n
        assert abs(curve.mean[-1] - 0.1) < 6 * math.sqrt(0.09 / n) + (most - 0.1)
        assert all(b < a + 6 * math.sqrt(0.5 / n) for a, b in zip(curve.mean, curve.mean[1:], strict=False))
    for m in study.midpoints():
        assert m.status == "ok" and m.low < m.level < m.high and math.isfinite(m.high)
    input_, *_, logits = study.midpoints()
    assert input_.level < logits.level  # the input is weakest, as published for clean training
