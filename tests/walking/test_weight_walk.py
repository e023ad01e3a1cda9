"""Noise on the weights of one contraction at a time: against a loop, the plain engine, other plans."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import snippet
from torch import Tensor, nn
from torch.func import functional_call
from traced_models import Folded
from weight_models import DRAWS, LEVELS, MODELS, NOISES, SEED, problem, walk

import noisykernels as nk
from noisykernels._engine import cached as kept
from noisykernels._engine.evaluator import Evaluator
from noisykernels._engine.store import StoreError
from noisykernels.reference import noise as reference
from noisykernels.study import Study
from noisykernels.study.html_report import _snippet

# ------------------------------------------------------------------------------------- what the numbers are


def cases(names: Iterable[str], *quick: str) -> list[Any]:
    """Every model with every noise; LeNet, which takes seconds, with all but a few in the full tests only."""
    full = pytest.mark.full
    return [
        pytest.param(name, kind, marks=full if name == "lenet" and kind not in quick else (), id=f"{name}-{kind}")
        for name in names
        for kind in NOISES
    ]


@pytest.mark.parametrize(("name", "kind"), cases(MODELS, "add", "fold, channel"))
def test_counts_are_the_plain_ones(name: str, kind: str) -> None:
    model, data = problem(name, 60)
    shared, plain = (walk(model, data, NOISES[kind], engine=engine) for engine in ("auto", "plain"))
    assert shared.records == plain.records
    arrays = [s.name for s in nk.sites(model, data[0][:2]) if s.calls]
    assert list(dict.fromkeys(r.site for r in shared.records)) == arrays
    clean = {r.correct for r in shared.records if r.level == 0}
    assert clean == {60} and min(r.correct for r in shared.records) < 50


def noisy_parameter(weight: Tensor, noise: nk.WeightNoise, level: float, transposed_groups: int, **key: Any) -> Tensor:
    """The definition: the oracle's eps, of levels in units of max|W|."""
    how = nk.Noise(
        *((0.0 if v is None else level * float(v)) for v in (noise.noise.add, noise.noise.mul)),
        kind=noise.noise.kind, fold=noise.noise.fold,
    )  # fmt: skip
    if how.add is not None and noise.relative is not None:
        unit = weight.abs().amax()
        if noise.relative == "channel":
            unit = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True)
            if transposed_groups:  # (inputs, outputs of a group, ...): a feature is a group and a place in dimension 1
                parts = weight.reshape(transposed_groups, -1, *weight.shape[1:])
                unit = parts.abs().amax((1, *range(3, parts.dim())), keepdim=True)
                unit = unit.expand_as(parts[..., :1, :1]).reshape(*weight.shape[:2], 1, 1)
            unit = unit.unsqueeze(0)
        how.add = how.add * unit.double()
    return reference.perturb(weight, how, operand="weight", **key)


def counts_of_a_loop(model: nn.Module, data: tuple[Tensor, Tensor], noise: nk.WeightNoise) -> dict[Any, int]:
    """Nothing of ours but the oracle of the noise: for every site, level and draw other parameters."""
    x, y = data
    parameters, expected = dict(model.named_parameters()), {}
    for site in nk.sites(model, x[:2]):
        key = f"{site.name.partition(':')[0]}.weight"
        if site.kind not in ("linear", "conv1d", "conv2d", "conv_transpose2d"):
            continue
        module = model.get_submodule(key.removesuffix(".weight"))
        groups = module.groups if isinstance(module, nn.ConvTranspose2d) else 0
        for level, draw in itertools.product(LEVELS, DRAWS):
            weight = parameters[key].detach()
            noisy = noisy_parameter(weight, noise, level, groups, seed=SEED, site=site.id, draws=[draw])
            with torch.no_grad():
                scores = functional_call(model, {**parameters, key: noisy}, (x,))
            expected[site.name, level, draw] = int((scores.argmax(1) == y).sum())
    return expected


@pytest.mark.parametrize(("name", "kind"), cases(["lenet", "mlp", "skips", "convolutions"], "layer", "fold"))
def test_equals_a_loop_over_noisy_parameters(name: str, kind: str) -> None:
    model, data = problem(name, 25)
    study = walk(model, data, NOISES[kind])
    found = {(r.site, r.level, r.draw): r.correct for r in study.records}
    expected = counts_of_a_loop(model, data, NOISES[kind])
    assert found == expected and len(expected) >= 3 * 4 * 2


def test_noise_is_one_for_all_rows_and_each_site_has_its_own() -> None:
    """Copies of one row are right or wrong together, for each draw; two calls of one module differ."""
    model, (x, _) = problem("shared", 20)
    x = x[:1].expand(40, -1).contiguous()
    y = model(x).argmax(1)
    study = walk(model, (x, y), NOISES["mul"], levels=[3.0, 6.0], draws=40)
    assert {r.correct for r in study.records} == {0, 40}
    of = {s: [r.correct for r in study.records if r.site == s] for s in ("a:linear#0", "a:linear#1")}
    assert of["a:linear#0"] != of["a:linear#1"]
    # So all uncertainty lies between draws: the band is Student's, far wider than that of 40 x 40 rows.
    (curve,) = walk(model, (x, y), NOISES["mul"], levels=[6.0], draws=40, sites="a:linear#0").curves()
    of_rows = math.sqrt(curve.mean[0] * (1 - curve.mean[0]) / 1600)
    assert 0.1 < curve.mean[0] < 0.95 and curve.high[0] - curve.low[0] > 5 * 2 * 1.96 * of_rows


@pytest.mark.parametrize("name", ["lenet", "skips", "attention", "parametrized"])
def test_the_same_for_every_plan(name: str) -> None:
    model, (x, y) = problem(name, 30)
    whole = walk(model, (x, y), draws=3)
    plans: list[dict[str, Any]] = [dict(batch_rows=7), dict(memory=2**20, threads=1), dict(draws_per_pass=1)]
    if x.dim() == 4:
        y_of = dict(levels=[1.0])
        last = (x.to(memory_format=torch.channels_last), y)
        model.to(memory_format=torch.channels_last)
        for engine in ("auto", "plain"):
            lines = [r for r in whole.records if r.level == 1.0]
            assert walk(model, last, draws=3, engine=engine, **y_of).records == lines
        model.to(memory_format=torch.contiguous_format)
    for plan in plans:
        for engine in ("auto", "plain"):
            assert walk(model, (x, y), draws=3, engine=engine, **plan).records == whole.records


def test_draws_are_ids_and_rows_do_not_matter() -> None:
    """Noise of weights knows no rows: a part of the data gives that part's counts, under any numbers."""
    model, (x, y) = problem("lenet", 40)
    study = walk(model, (x, y), draws=[2**32 - 1, 7, 0])
    assert {r.draw for r in study.records} == {0, 7, 2**32 - 1}
    for draw in (0, 7, 2**32 - 1):
        alone = walk(model, (x, y), draws=[draw])
        assert alone.records == [r for r in study.records if r.draw == draw]
    order = torch.randperm(40)
    numbered = walk(model, (x[order], y[order]), draws=[2**32 - 1, 7, 0], rows=order + 1000)
    assert numbered.records == study.records
    halves = [walk(model, (x[part], y[part]), draws=[2**32 - 1, 7, 0]) for part in (slice(0, 13), slice(13, 40))]
    assert [a.correct + b.correct for a, b in zip(*(h.records for h in halves), strict=True)] == [
        r.correct for r in study.records
    ]


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_several_noises_are_as_each_alone(engine: str) -> None:
    model, data = problem("lenet", 40)
    noises = [*NOISES.values(), nk.WeightNoise(add=1.0, kind="laplace", relative="layer")]
    together = walk(model, data, noises, engine=engine, sites=["conv2", "fc1"])
    for noise, study in zip(noises, together, strict=True):
        alone = walk(model, data, noise, engine=engine, sites=["conv2", "fc1"])
        assert study.records == alone.records and study.meta == alone.meta
    # A Noise of one term is the noise of weights of that term.
    plain = [walk(model, data, n, sites="conv2") for n in (nk.Noise(mul=0.5), NOISES["mul"])]
    assert plain[0] == plain[1]


def test_data_types() -> None:
    """The rows with the largest margins of 400: float32 moves hardly any of 1,600 predictions, bfloat16 as many as the
    library's own does in a loop: 22, while loop and walk differ in 8 at most, with every setting of operators.py."""
    model, (x, _) = problem("lenet", 400)
    with torch.no_grad():
        best = model(x).topk(2, 1).values
    rows = (best[:, 0] - best[:, 1]).argsort(descending=True)[:40]
    data = x[rows], model(x[rows]).argmax(1)
    exact, other = (walk(model, data, seed=seed) for seed in (SEED, 1))

    def counts(study: Study) -> dict[Any, int]:
        return {(r.site, r.level, r.draw): r.correct for r in study.records}

    def moved(one: dict[Any, int], other: dict[Any, int]) -> int:
        return sum(abs(one[key] - other[key]) for key in counts(exact))

    for dtype in (torch.float32, torch.bfloat16):
        given = data[0].to(dtype), data[1]
        loop = counts_of_a_loop(model.to(dtype), given, NOISES["layer"])
        # The walk's roundings are those of the loop but within contractions and norms: so the two differ in no more
        # predictions than either does from float64, where all of them count.
        most = max(1, moved(loop, counts(exact)))
        for engine in ("auto", "plain"):
            assert moved(counts(walk(model, given, engine=engine)), loop) <= most, (dtype, engine)
        assert most <= 1 or dtype == torch.bfloat16
        assert moved(counts(other), loop) > max(90, 2 * most)  # other noise is seen


def test_noisy_layers_of_the_model_are_silent_but_walked() -> None:
    torch.manual_seed(0)
    noisy = nn.Sequential(nk.NoisyLinear(6, 8, hardware=[nk.WeightNoise(add=50.0)]), nn.ReLU(), nn.Linear(8, 4))
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    plain.load_state_dict(noisy.state_dict())
    x = torch.randn(60, 6, dtype=torch.float64)
    noisy, plain = noisy.double(), plain.double()
    data = x, plain(x).argmax(1)
    for engine in ("auto", "plain"):
        study = walk(noisy, data, engine=engine)
        assert study.records == walk(plain, data).records and study.meta.clean_correct == 60


# ---------------------------------------------------------------------------- what is reached, and what is said


def warned(model: nn.Module, data: Any, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nk.walk(model, data, noise=NOISES["layer"], target="weight", levels=[1.0], draws=1, seed=1, **options)
    return [str(w.message) for w in caught]


def test_what_is_shared_and_what_falls_back_with_a_warning() -> None:
    for name in MODELS:
        assert not warned(*problem(name, 8)), name
    random = nn.Sequential(nn.Linear(6, 4), Random())
    assert (
        "every pass runs the whole model" in warned(random, (torch.randn(8, 6), torch.zeros(8, dtype=torch.int64)))[0]
    )


class Random(nn.Module):
    """Draws by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(4)


@pytest.mark.parametrize("name", ["lenet", "skips", "attention"])
def test_the_noise_is_a_direction_at_the_contraction(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are drawn once for each site, draw and part of the rows, however many levels there are."""
    model, data = problem(name, 60)
    drawn: list[Any] = []
    monkeypatch.setattr(
        "noisykernels._graph.contractions.eps", lambda shape, **how: (drawn.append(shape), nk.eps(shape, **how))[1]
    )
    counts = []
    for levels in ([1.0], torch.linspace(0.1, 1, 12)):
        drawn.clear()
        study = walk(model, data, levels=levels, draws=3)
        counts.append(len(drawn))
    assert counts[0] == counts[1] >= 3 * len({r.site for r in study.records}) and len(study.records) >= 36 * 3


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [(None, [1, 5, 9, 12, 15]), ([5, "fc*"], [5, 9, 12, 15]), (1, [1]), ("*:conv2d", [1, 5])],
    ids=str,
)  # fmt: skip
def test_sites_keep_their_numbers(chosen: Any, expected: list[int]) -> None:
    model, data = problem("lenet", 10)
    study = walk(model, data, sites=chosen, levels=[1.0], draws=1)
    assert [r.site_index for r in study.records] == expected and len(study.meta.sites) == 16


def test_study_says_what_was_noisy(tmp_path: Path) -> None:
    model, data = problem("lenet", 20)
    study = walk(model, data, NOISES["channel"])
    assert study.meta.target == "weight" and not study.meta.independent_rows and study.meta.axis == "log"
    assert study.meta.noise == {
        "kind": "gaussian", "mode": "add", "fold": False, "add": 0.5, "mul": 0.0, "relative": "channel",
    }  # fmt: skip
    again = Study.load(study.save(tmp_path / "a.json"))
    assert again == study and again.meta.target == "weight"
    assert walk(model, data, NOISES["mul"]).meta.axis == "linear"


def test_the_snippet_of_a_report_runs_the_study_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, data = problem("mlp", 60)
    cases: list[tuple[Any, dict[str, Any]]] = [
        (NOISES["channel"], dict(sites=["fc1:linear#0"])),
        (NOISES["fold"], dict(draws=[3, 5], floor=0.2)),
        (nk.Noise(mul=0.5, kind="uniform"), {}),
        (NOISES["layer"], dict(levels=None, draws=None, sites=["fc_out:linear#0"])),
    ]
    for noise, more in cases:
        study = walk(model, data, noise, batch_rows=20, threads=1, **more)
        text = _snippet(study)
        assert 'target="weight"' in text and "nk.WeightNoise(" in text
        names: dict[str, Any] = {"model": model, "data": data}
        exec(text, names)
        assert names["study"].records == study.records and names["study"].meta == study.meta
    assert snippet(study, tmp_path) == text


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    model, data = problem("mlp", 10)
    channels = nk.Noise(add=nk.per_channel(torch.ones(8), ndim=2))
    for noise, options, kind, said in (
        (NOISES["add"], dict(target="activation"), ValueError, r"walk: a WeightNoise goes with target='weight'$"),
        ([nk.Noise(add=1.0), NOISES["add"]], dict(target="activation"), ValueError, "a WeightNoise goes with"),
        (nk.Noise(1.0, 1.0), {}, ValueError, r"WeightNoise: give add or mul, or both with fold=True, got Noise\(add"),
        (nk.Noise(1.0, 1.0, order="add_mul"), {}, ValueError, "WeightNoise: give add or mul, or both with fold=True"),
        (channels, {}, ValueError, r"walk: levels of noise on weights must be numbers, got WeightNoise\("),
        (nk.WeightNoise(mul=torch.ones(1, 1, 3)), {}, ValueError, "walk: levels of noise on weights must be numbers"),
        (NOISES["add"], dict(plateaus=0.03), ValueError, "walk: plateaus are for noise on activations: the rows of a"),
        (NOISES["add"], dict(target="bias"), ValueError, "walk: target must be 'activation' or 'weight', got 'bias'"),
        (NOISES["add"], dict(sites="relu1"), ValueError, "walk: no site 'relu1'; the model has 1 fc1:linear#0, 4 fc2"),
        (NOISES["add"], dict(sites=[0]), ValueError, "walk: no site 0; the model has 1 fc1:linear#0"),
        ([nk.MacNoise(0.1)], {}, TypeError, "walk: noise must be a Noise, or a list of them, got list"),
        (NOISES["add"], dict(levels=[-1.0]), ValueError, "walk: each item of levels"),
    ):  # fmt: skip
        with pytest.raises(kind, match=said):
            nk.walk(model, data, noise=noise, **dict(dict(levels=LEVELS, draws=1, seed=1, target="weight"), **options))
    with pytest.raises(
        ValueError, match=r"^walk: the model has no linear layer or convolution, so no weights for noise"
    ):
        walk(nn.Sequential(nn.ReLU(), nn.Flatten()), data)
    folded = Folded()
    pair = torch.randn(8, 5, 6), torch.zeros(8, dtype=torch.int64)
    study = walk(folded, pair, NOISES["add"], levels=[0.5], draws=2)
    for r in study.records:  # several values of a row in one dimension: the numbers of the loop
        placed = {r.site: [NOISES["add"].scaled(r.level)]}
        with (
            nk.inject(folded, None, hardware=placed, example_input=pair[0]),
            nk.noise_state(folded, seed=study.meta.seed, draws=[r.draw]),
        ):
            assert int((folded(pair[0]).argmax(1) == pair[1]).sum()) == r.correct
    single = problem("mlp", 10, torch.float32)
    with pytest.raises(ValueError, match=r"`add` of the noise times level 1e\+39 exceeds float32's range"):
        walk(*single, nk.WeightNoise(add=1.0), levels=[1e39])


# ------------------------------------------------------------------------------------------ stores and workers


def test_workers_give_the_same() -> None:
    """Two processes; threads, by the plain engine and for a search."""
    model, data = problem("mlp", 700, torch.float32)
    search: dict[str, Any] = dict(levels=None, draws=None, rel_ci=0.2)
    with ThreadPoolExecutor(2) as threads:
        for executor, how in ((2, {}), (threads, dict(engine="plain")), (threads, search)):
            alone, together = (walk(model, data, threads=1, executor=e, **how) for e in (None, executor))
            assert together.records == alone.records and together.meta == alone.meta


def test_what_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interruption only what is missing is evaluated, of a grid and of a search; the end is the same."""
    model, data = problem("mlp", 600)
    monkeypatch.setattr(kept, "GO", 0.0)
    monkeypatch.setattr(kept, "FIRST_GO", 1)
    correct, calls, stop = Evaluator.answers, [], [10**9]

    def counted(self: Evaluator, requests: Any, *args: Any) -> Any:
        calls.append(sum(len(r.levels) * len(r.draws) * r.rows for r in requests))
        if len(calls) == stop[0]:
            raise KeyboardInterrupt
        return correct(self, requests, *args)

    monkeypatch.setattr(Evaluator, "answers", counted)
    for name, how in {"grid": {}, "search": dict(levels=None, draws=None, rel_ci=0.3)}.items():
        file = tmp_path / f"{name}.db"
        whole = walk(model, data, **how)
        asked = sum(calls)
        calls.clear()
        stop[0] = 4
        with pytest.raises(KeyboardInterrupt):
            walk(model, data, **how, store=file)
        done = sum(calls[:-1])
        calls.clear()
        stop[0] = 10**9
        again = walk(model, data, **how, store=file)
        assert again.records == whole.records and sum(calls) + done == asked and done > 0
        calls.clear()
        assert walk(model, data, **how, store=file) == again and not calls


def test_a_store_refuses_another_target_or_unit(tmp_path: Path) -> None:
    model, data = problem("mlp", 20)
    file = tmp_path / "a.db"
    walk(model, data, NOISES["layer"], store=file)
    before = file.read_bytes()
    same = nk.WeightNoise(add=0.3, relative="channel")
    for noise in (same, nk.WeightNoise(add=0.3), nk.WeightNoise(add=0.4, relative="layer")):
        with pytest.raises(StoreError, match=r"target|noise"):
            walk(model, data, noise, store=file)
    with pytest.raises(StoreError, match="target"):
        nk.walk(model, data, noise=nk.Noise(add=0.3), levels=LEVELS, draws=DRAWS, seed=SEED, store=file)
    assert file.read_bytes() == before
