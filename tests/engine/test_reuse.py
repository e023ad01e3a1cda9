"""The engine that shares work: the plain engine's numbers, for every kind of model and noise, from far less work."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from traced_models import MODELS, NOISES, Random, made

import noisykernels as nk
from noisykernels._engine.plan import choose_plan
from noisykernels._graph import suffix
from noisykernels._graph.recorder import record_tape
from noisykernels.injection import inject


@pytest.mark.parametrize("kind", list(NOISES))
@pytest.mark.parametrize("name", list(MODELS))
def test_counts_are_the_plain_ones(name: str, kind: str) -> None:
    """Also for sites that cannot be reached alone. A prediction may differ where two scores are equal up to rounding:
    margins are spread over some units, so that of a few thousand none is likely to be within 1e-5.
    """
    model, x = made(name, 40)
    y = model(x).argmax(1) if name != "noisy layers" else torch.randint(3, (40,))
    sites = ["input", "b"] if name == "folded" else None  # between them, rows are folded away
    settings: dict[str, Any] = dict(noise=NOISES[kind], levels=[0.0, 0.3, 3.0], draws=[4, 1], seed=7, sites=sites)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shared = nk.walk(model, (x, y), **settings)
    plain = nk.walk(model, (x, y), **settings, compute=nk.Compute(engine="plain"))
    assert shared.records == plain.records


@pytest.mark.parametrize(("name", "copies"), [("encoder", {1}), ("residual", {6})])
def test_passes_that_fit_the_caches_change_nothing(
    name: str, copies: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the caches take nothing; the library's convolutions want all the rows that there are."""
    model, x = made(name, 40)
    data, seen = (x, model(x).argmax(1)), list[int]()
    how: dict[str, Any] = dict(noise=NOISES["add"], levels=[0.0, 0.3, 3.0], draws=2, seed=7, sites=["input"])
    expected = nk.walk(model, data, **how).records
    scores = suffix.Suffix.scores

    def watched(self: Any, clean: Any, carried: Any, mixture: Any, levels: Tensor, draws: int, rows: int) -> Tensor:
        seen.append(len(levels) * draws if rows == 40 else 0)  # 0: of the check
        return scores(self, clean, carried, mixture, levels, draws, rows)

    monkeypatch.setattr(suffix.Suffix, "scores", watched)
    monkeypatch.setattr(suffix, "CACHED", 1)
    monkeypatch.setattr(suffix, "MOVED", 1)
    assert nk.walk(model, data, **how).records == expected and set(seen) - {0} == copies


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_several_noises_are_as_each_alone(engine: str) -> None:
    """Mixed noise of several ratios in both orders, another kind and levels per channel: shared work, same counts."""
    model, x = made("lenet", 40)
    y = model(x).argmax(1)
    channels = nk.per_channel(torch.tensor([0.5]), ndim=4)
    noises = [
        *(nk.Noise.amplitude(1.0, ratio) for ratio in (0.0, 0.25, 1.0)),
        nk.Noise.amplitude(1.0, 0.5, order="add_mul"),
        NOISES["uniform"], NOISES["fold"], nk.Noise(add=channels),
    ]  # fmt: skip
    how: dict[str, Any] = dict(levels=[0.0, 0.3, 3.0], draws=[4, 1], seed=7, sites=["input", "pool1", "conv2"])
    together = nk.walk(model, (x, y), noise=noises, **how, compute=nk.Compute(engine=engine))
    for noise, study in zip(noises, together, strict=True):
        assert study.records == nk.walk(model, (x, y), noise=noise, **how, compute=nk.Compute(engine=engine)).records


def test_several_noises_are_searched_as_each_alone(tmp_path: Any) -> None:
    model, x = made("mlp", 600)
    y = model(x).argmax(1)
    noises = [nk.Noise.amplitude(1.0, ratio) for ratio in (0.5, 1.0)]
    together = nk.walk(model, (x, y), noise=noises, seed=3, store=tmp_path / "s.db")
    for noise, study in zip(noises, together, strict=True):
        alone = nk.walk(model, (x, y), noise=noise, seed=3)
        assert study.records == alone.records and study.meta == alone.meta
    again = nk.walk(model, (x, y), noise=noises, seed=3, store=tmp_path / "s.db")
    assert [s.records for s in again] == [s.records for s in together]


def test_the_same_for_every_plan() -> None:
    model, x = made("lenet", 50)
    y = model(x).argmax(1)
    settings: dict[str, Any] = dict(noise=NOISES["mixed"], levels=[0.1, 1.0], draws=3, seed=7)
    whole = nk.walk(model, (x, y), **settings)
    for compute in (nk.Compute(batch_rows=7), nk.Compute(memory=2**20), nk.Compute(threads=1)):
        assert nk.walk(model, (x, y), **settings, compute=compute).records == whole.records


def test_rows_are_data_set_indices() -> None:
    model, x = made("mlp", 40)
    y, order = model(x).argmax(1), torch.randperm(40)
    settings: dict[str, Any] = dict(noise=NOISES["add"], levels=[1.0], draws=2, seed=7)
    shuffled = nk.walk(model, (x[order], y[order]), rows=order, **settings)
    assert shuffled.records == nk.walk(model, (x, y), **settings).records


def test_memory_bounds_the_passes() -> None:
    model, x = made("lenet", 4)
    with inject(model, None, example_input=x[:2]) as injected:
        tape = record_tape(injected, x)
    row = sum(4 * torch.Size(s[1:]).numel() for s in tape.shapes.values())
    for memory in (2**18, 2**22, 2**30):
        plan = choose_plan(tape, memory, 500, torch.device("cpu"))
        assert plan.rows * row <= memory // 4 or plan.rows == 1
        assert plan.bytes <= max(memory // 4, 4 * 3456 * plan.rows)


def test_memory_bounds_whole_passes_too() -> None:
    """Of large images a pass takes fewer rows than asked for; the noise is the same."""
    model, x = made("residual", 40)
    y = model(x).argmax(1)
    how: dict[str, Any] = dict(noise=NOISES["add"], levels=[1.0], draws=3, seed=7)
    little, much = (
        nk.walk(model, (x, y), **how, compute=nk.Compute(engine="plain", memory=memory)) for memory in (2**18, 2**30)
    )
    assert little.meta.plan["batch_rows"] == 2**18 // (4 * 14 * 8 * 64) and little.meta.plan["draws_per_pass"] == 1
    assert (much.meta.plan["batch_rows"], much.meta.plan["draws_per_pass"]) == (500, 8)
    assert little.records == much.records


class Means(nn.Module):
    """Rows look at each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return torch.relu(x - x.mean(0))


def test_sites_that_cannot_be_reached_fall_back_with_a_warning() -> None:
    model, x = Means(), torch.randn(8, 3)
    settings: dict[str, Any] = dict(noise=NOISES["add"], levels=[1.0], draws=1, seed=7)
    with pytest.warns(UserWarning, match=r"a:linear#0 \(mean mixes rows\)"):
        shared = nk.walk(model, (x, torch.randint(3, (8,))), **settings)
    assert len(shared.records) == 3
    with pytest.warns(UserWarning, match="every pass runs the whole model: it draws random numbers of its own"):
        nk.walk(Random(), (x, torch.randint(3, (8,))), **settings)
