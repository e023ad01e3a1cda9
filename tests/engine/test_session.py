"""The one set-up of all studies: what it checks, what it leaves behind, and that all studies speak of it alike."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._engine.session import Problem, Session
from noisykernels._util.checks import RANGES
from noisykernels._util.inputs import Call
from noisykernels.injection.state import state_of


def made() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    return model, (torch.randn(20, 6), torch.randint(3, (20,)))


def studies() -> dict[str, Callable[..., Any]]:
    model, data = made()
    noise, hardware = nk.Noise(add=0.1), [nk.WeightNoise(add=0.1)]
    predictor = nk.experiments.LinearPredictor(1.0, 0.0, 1.0, 0.0, 100)
    serial = nk.Serial(low=-1.0, high=1.0)
    formats = nk.experiments
    return {
        "walk": lambda m=model, d=data, **o: nk.walk(m, d, noise=noise, levels=[1.0], draws=1, **o),
        "walk_parameter": lambda m=model, d=data, **o: nk.walk_parameter(m, d, lambda v: [serial], [1.0], **o),
        "walk_mixed": lambda m=model, d=data, **o: nk.walk_mixed(m, d, ratios=[0.5], levels=[1.0], draws=1, **o),
        "vote": lambda m=model, d=data, **o: nk.vote(m, d, noise=noise, draws=2, **o),
        "chips": lambda m=model, d=data, **o: nk.chips(m, d, hardware=hardware, draws=2, **o),
        "sweep_formats": lambda m=model, d=data, **o: formats.sweep_formats(m, d, ["M7E6"], **o),
        "search_format": lambda m=model, d=data, **o: formats.search_format(m, d, predictor, formats=["M7E6"], **o),
        "layer_formats": lambda m=model, d=data, **o: formats.layer_formats(m, d, "M20E6", evaluations=1, **o),
        "order_sensitivity": lambda m=model, d=data, **o: formats.order_sensitivity(m, d, serial, permutations=2, **o),
    }


NAMES = list(studies())


@pytest.mark.parametrize("name", NAMES)
def test_every_study_asks_for_a_seed(name: str) -> None:
    with pytest.raises(TypeError, match="required keyword-only argument: 'seed'"):
        studies()[name]()


@pytest.mark.parametrize("name", NAMES)
def test_every_study_refuses_bad_data_and_models_alike(name: str) -> None:
    study, (x, y) = studies()[name], made()[1]
    for data, said in (
        ((x, y[:3]), f"{name}: data must have as many inputs as labels, got 20 and 3"),
        ([(x, y), (x, x)], f"{name}: each batch of data must be as the first but for its rows, got torch.float32"),
    ):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            study(d=data, seed=1)
        assert str(caught.value).startswith(said)
    with pytest.raises(ValueError, match=rf"{name}: seed must be a whole number from 0"):
        study(seed=-1)
    with pytest.raises(TypeError, match=rf"{name}: compute must be a Compute or None, got {{'batch_rows': 7}}"):
        study(seed=1, compute={"batch_rows": 7})
    model = made()[0]
    with nk.inject(model, nk.Noise(add=0.1)), pytest.raises(ValueError, match="injected already"):
        study(m=model, seed=1)
    tall = nn.Sequential(nn.Linear(6, 3), nn.Unflatten(1, (3, 1)))
    with pytest.raises(
        ValueError, match=rf"{name}: the model must give scores of shape \[\d+, classes\], got \[\d+, 3, 1\]"
    ):
        study(m=tall, seed=1)


@pytest.mark.parametrize("name", NAMES)
def test_every_study_leaves_the_model_as_it_was(name: str) -> None:
    model = made()[0]
    model[2].eval()
    modes, keys = [m.training for m in model.modules()], list(model.state_dict())
    threads = torch.get_num_threads()
    studies()[name](m=model, seed=1, compute=nk.Compute(threads=1, batch_rows=7))
    assert [m.training for m in model.modules()] == modes and list(model.state_dict()) == keys
    assert type(model) is nn.Sequential and not any(m._forward_hooks for m in model.modules())
    assert torch.get_num_threads() == threads and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("walk")])
def test_what_a_study_cannot_follow_is_refused(name: str) -> None:
    """Nothing asked for is silently left out."""
    for settings in (dict(executor=2), dict(engine="plain")):
        with pytest.raises(ValueError, match=rf"{name}: of compute it takes .*, got {next(iter(settings))}="):
            studies()[name](seed=1, compute=nk.Compute(**settings))


def test_a_session_that_fails_leaves_the_model_as_it_was() -> None:
    class Fails(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            if len(input) > 3:
                raise ArithmeticError("too many")
            return super().forward(input)

    model = Fails(6, 3)
    problem = Problem.of(Call("walk"), model, made()[1], seed=1)
    with pytest.raises(ArithmeticError, match="too many"), Session("walk", problem) as session:
        assert not model.training and session.clean.all()
    assert model.training and type(model) is Fails
    with Session("walk", problem):  # and may be asked again
        assert not model.training


def test_a_session_is_silent_but_where_noise_is_placed() -> None:
    model, data = made()
    problem = Problem.of(Call("vote"), model, data, seed=1)
    with Session("vote", problem, noise=nk.Noise(add=5.0)) as session, torch.no_grad():
        clean = model(data[0])
        noisy = [scores for _, _, scores in session.noisy_scores([0, 1])]
        assert torch.equal(model(data[0]), clean) and state_of(model).placement.noise is None
        assert noisy[0].shape == (2, 20, 3) and not torch.allclose(noisy[0][0], clean, atol=1.0)
        assert (session.clean == (clean.argmax(1) == data[1]).numpy()).all() and session.outputs == 3


def test_threads_of_a_pool_are_left_as_they_were() -> None:
    """A worker that lives in a thread of the caller's keeps its model, but none of torch's states."""
    model, data = made()

    def state() -> tuple[bool, bool, int]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        before = pool.submit(state).result()
        compute = nk.Compute(executor=pool)
        nk.walk(model, data, noise=nk.Noise(add=1.0), levels=[0.5], draws=1, seed=1, compute=compute)
        assert pool.submit(state).result() == before


def test_compute_checks_itself() -> None:
    for settings, said in (
        (dict(engine="fast"), "Compute: engine must be one of auto, shared, plain, got 'fast'"),
        (dict(batch_rows=0), "Compute: batch_rows must be a whole number from 1 to 2^63 - 1, got 0"),
        (dict(threads=0), f"Compute: threads must be {RANGES['threads']}, got 0"),
        (dict(memory=1.5), "Compute: memory must be a whole number from 1 to 2^63 - 1, got 1.5"),
        (dict(executor=0), f"Compute: executor must be {RANGES['workers']}, got 0"),
        (dict(executor="dask"), "Compute: executor must have `submit`, or be a number of processes, got 'dask'"),
    ):
        with pytest.raises((ValueError, TypeError)) as caught:
            nk.Compute(**settings)
        assert str(caught.value) == said
    with pytest.raises(ValueError, match=r"Search: rel_ci must lie between 0 and 1, got 1\.5"):
        nk.Search(rel_ci=1.5)
    model, data = made()
    with pytest.raises(TypeError, match=r"walk: search must be a Search or None, got 0.1"):
        nk.walk(model, data, noise=nk.Noise(add=1.0), seed=1, search=0.1)
    with pytest.raises(ValueError, match="walk: a search finds its own levels"):
        nk.walk(model, data, noise=nk.Noise(add=1.0), seed=1, levels=[1.0], draws=1, search=nk.Search())


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_repeated_or_measured_is_refused(name: str) -> None:
    study = studies()[name]
    with pytest.raises(TypeError, match=rf"{name}: seed must be a whole number from 0 to .*, got None"):
        study(seed=None)
    if name == "vote":
        return  # votes are about classes

    for metric, said in (
        (nk.metrics.Accuracy, r"an object, got the class Accuracy: write Accuracy\(\)"),
        (3, "a name such as 'nll', a Metric such as"),
    ):
        with pytest.raises(TypeError, match=f"{name}: metric must be {said}"):
            study(seed=1, metric=metric)
    with pytest.raises(ValueError, match=f"{name}: metric 'accurcy' is not known; near it is 'accuracy'"):
        study(seed=1, metric="accurcy")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (dict(axis="lin"), ValueError, "walk: axis must be 'log' or 'linear' or None, got 'lin'"),
        (dict(floor="a"), TypeError, "walk: floor must be a finite number or None, got 'a'"),
        (dict(description="net"), TypeError, "walk: description must be a list, got 'net'"),
        (dict(description=("net",)), TypeError, "walk: description must be two texts"),
    ],
)
def test_a_walk_is_checked_before_the_work(options: dict[str, Any], error: type[Exception], said: str) -> None:
    model, data = made()

    class Counts(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counts.calls += 1
            return model(x)

    with pytest.raises(error, match=said):
        nk.walk(Counts(), data, noise=nk.Noise(add=1.0), levels=[1.0], draws=1, seed=1, **options)
    assert Counts.calls == 0


@pytest.mark.parametrize("name", ["sweep_formats", "layer_formats", "order_sensitivity", "chips", "vote"])
def test_rows_go_by_their_ids(name: str) -> None:
    """In every study a shuffled data set, told which row is which, gives the numbers of the one in order."""
    study, (x, y) = studies()[name], made()[1]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    noisy: dict[str, Any] = {}
    if name in ("sweep_formats", "layer_formats"):
        noisy = {"arithmetic": lambda fmt: nk.Serial("M7E6", step_noise=0.5)}
    if name == "sweep_formats":
        noisy["inputs"] = x[:2]
    whole, mixed, other = (
        study(d=data, seed=1, rows=rows, **noisy)
        for data, rows in (((x, y), None), ((x[order], y[order]), order), ((x, y), order))
    )

    def numbers(result: Any) -> list[float]:
        if name == "vote":
            return [float(v) for c in result.curves.values() for v in c.values]
        if name == "sweep_formats":
            return [r.normalised for r in result.results]
        return [result.normalised] if name == "layer_formats" else result.values.tolist()

    assert numbers(mixed) == pytest.approx(numbers(whole), abs=1e-12)
    assert other is not None


def test_chips_may_be_noisy_at_some_sites() -> None:
    model, data = made()
    some = nk.chips(model, data, noise=nk.Noise(add=5.0), draws=4, seed=1, sites="0")
    named = nk.chips(model, data, noise={"0": nk.Noise(add=5.0)}, draws=4, seed=1)
    every = nk.chips(model, data, noise=nk.Noise(add=5.0), draws=4, seed=1)
    assert (some.values == named.values).all() and (some.values != every.values).any()
    with pytest.raises(ValueError, match="chips: a dict of noises says where they enter; leave out sites="):
        nk.chips(model, data, noise={"0": nk.Noise(add=5.0)}, draws=4, seed=1, sites="0")


@pytest.mark.parametrize("name", ["layer_formats", "order_sensitivity", "sweep_formats", "search_format"])
def test_every_study_tells_its_progress(name: str) -> None:
    seen: list[tuple[int, int]] = []
    studies()[name](seed=1, progress=lambda done, total: seen.append((done, total)))
    assert seen and seen[-1][0] == seen[-1][1] == len(seen)


def test_formats_take_no_draws_at_once_and_stores_know_the_memory(tmp_path: Any) -> None:
    model, data = made()
    sweep = nk.experiments.sweep_formats
    with pytest.raises(ValueError, match=r"sweep_formats: of compute it takes .*, got draws_per_pass=4"):
        sweep(model, data, ["M7E6"], seed=1, compute=nk.Compute(draws_per_pass=4))
    sweep(model, data, ["M7E6"], seed=1, store=tmp_path / "s.db")
    with pytest.raises(nk.walking.StoreError, match="plan"):
        sweep(model, data, ["M7E6"], seed=1, store=tmp_path / "s.db", compute=nk.Compute(memory=2048))


def test_scores_of_nan_are_no_predictions_of_an_order() -> None:
    """They count as wrong, and agree with each other alone."""

    class Half(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            y = super().forward(input)
            return torch.where((torch.arange(len(y)) % 2 == 0)[:, None], y, math.nan)

    torch.manual_seed(0)
    model, x = Half(6, 3), torch.randn(20, 6)
    data = x, nn.functional.linear(x, model.weight, model.bias).argmax(1)
    arithmetic = nk.Serial(low=-9.0, high=9.0)
    found = nk.experiments.order_sensitivity(model, data, arithmetic, permutations=3, seed=1)
    assert found.orders["none"] == 0.5 and found.values.tolist() == [0.5] * 3
    assert found.disagreement == 0.0 and found.changed == 0.0


def test_a_pool_keeps_the_threads_that_its_owner_set() -> None:
    """Also when a model is forgotten for a newer one, and when a worker's thread ends."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(torch.set_num_threads, 1).result()
            for seed in range(4):
                model, data = made()
                nk.walk(model, data, noise=nk.Noise(add=1.0), levels=[0.5], draws=1, seed=seed,
                        compute=nk.Compute(executor=pool))  # fmt: skip
                assert pool.submit(torch.get_num_threads).result() == 1
        gc.collect()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_worker_that_ends_leaves_random_numbers_alone() -> None:
    """It remembers its session, which ends when its thread does, or when the collector comes: long after the walk."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    data = torch.randn(30, 4), torch.arange(30) % 3
    with ThreadPoolExecutor(1) as executor:
        nk.walk(
            model, data, noise=nk.Noise(add=1.0), levels=[1.0], draws=2, seed=1, compute=nk.Compute(executor=executor)
        )
        torch.manual_seed(7)
        random.seed(7)
        expected = torch.get_rng_state(), random.getstate()
    gc.collect()
    assert torch.equal(torch.get_rng_state(), expected[0]) and random.getstate() == expected[1]
