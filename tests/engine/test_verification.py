"""The engine that shares work is held against the plain one before it is trusted: planted faults are found, their sites
run whole, and models without a fault raise no alarm."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from traced_models import MODELS, NOISES
from verifying import GRID, PLAIN, Patch, counts, problem

import noisykernels as nk
from noisykernels._engine import targets, verification
from noisykernels._engine.shared import SharedEngine
from noisykernels._graph import fusions, linearity, suffix
from noisykernels._graph.suffix import Suffix
from noisykernels._graph.tape import Tape
from noisykernels.hardware import ADC, DAC
from noisykernels.walking import walk_parameter

DIFFERS = r"^walk: for these sites every pass runs the whole model: .* \(at level .* times what rounding explains\)"


# ------------------------------------------------------------------------------------- planted faults


def wrong_sign(patch: Patch) -> None:
    correct = suffix.direction_of

    def wrong(step: Any, carried: Any, *rest: Any) -> Any:
        found = correct(step, carried, *rest)
        return -found if found is not None and step.function in linearity.CONTRACTIONS else found

    patch.setattr(suffix, "direction_of", wrong)


def kept_bias(patch: Patch) -> None:
    """A direction that carries the bias along."""
    patch.setattr(linearity, "without_bias", lambda step: (tuple(step.args[1:]), dict(step.kwargs)))


def dropped_bias(patch: Patch) -> None:
    """A norm folded into the weights without its shift."""
    correct = fusions.norm_scale
    patch.setattr(fusions, "norm_scale", lambda given: (correct(given)[0], correct(given)[1] * 0))


def swapped_rows(patch: Patch) -> None:
    correct = SharedEngine._cut

    def wrong(self: Any, target: Any, site: Any, clean: Any, low: int, high: int, rows: int) -> Any:
        found = correct(self, target, site, clean, low, high, rows)
        number = self.tape.sites[site.name]
        return found | {number: found[number].roll(1, self.tape.row_dims[number])}

    patch.setattr(SharedEngine, "_cut", wrong)


def shifted_rows(patch: Patch) -> None:
    """The first rows of a chunk in place of those asked for."""
    correct = SharedEngine._cut
    patch.setattr(SharedEngine, "_cut", lambda self, t, s, c, low, high, n: correct(self, t, s, c, 0, high - low, n))


def stale_value(patch: Patch) -> None:
    """A value after the site that is read as it was without noise: that with the fewest directions left."""
    correct = Suffix.carry

    def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = correct(self, *args, **kwargs)
        found.values.pop(min(found.values), None)
        return found

    patch.setattr(Suffix, "carry", wrong)


def wrong_order(patch: Patch) -> None:
    """Copies of clean values row by row, not copy by copy."""

    def wrong(tape: Tape, number: int, value: Tensor, copies: int, rows: int) -> Tensor:
        dim = tape.row_dims[number]
        assert dim is not None
        assert len(value) == rows
        return value.repeat_interleave(copies, dim)

    patch.setattr(suffix, "repeated", wrong)


def two_per_cent(patch: Patch) -> None:
    correct = Suffix.scores

    def wrong(self: Any, clean: Any, carried: Any, mixture: Any, levels: Tensor, *rest: int) -> Tensor:
        return correct(self, clean, carried, mixture, 1.02 * levels, *rest)

    patch.setattr(Suffix, "scores", wrong)


def other_draw(patch: Patch) -> None:
    correct = targets.Work.key
    patch.setattr(targets.Work, "key", lambda self, draws: correct(self, [d + 1 for d in draws]))


FAULTS: dict[str, Callable[[Patch], None]] = {f.__name__: f for f in (
    wrong_sign, kept_bias, dropped_bias, swapped_rows, shifted_rows, stale_value, wrong_order, two_per_cent, other_draw,
)}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, patch: Patch) -> None:
    """Sites that a fault reaches run whole, named, with the counts of the plain engine."""
    model, data = problem()
    expected = nk.walk(model, data, noise=nk.Noise(add=1.0), **GRID, compute=PLAIN)
    FAULTS[fault](patch)
    with pytest.warns(UserWarning, match=DIFFERS):
        study = nk.walk(model, data, noise=nk.Noise(add=1.0), **GRID)
    differing = study.meta.plan["verification"]["differing"]
    assert differing and counts(study) == counts(expected)


def test_faults_of_weights_and_parameters_are_found(patch: Patch) -> None:
    model, data = problem("mlp")
    weights = dict(noise=nk.Noise(mul=1.0), target="weight", **GRID)
    bits = dict(make=lambda n: [DAC(int(n), "row"), ADC(int(n), "row")], values=[2, 3, 4, 5], seed=3)
    expected = nk.walk(model, data, **weights, compute=PLAIN), walk_parameter(model, data, **bits, compute=PLAIN)
    direction, value = targets.direction_at, targets.value_at
    patch.setattr(targets, "direction_at", lambda *args: 1.02 * direction(*args))
    patch.setattr(targets, "value_at", lambda devices, *rest: value(devices[:1], *rest))  # without the ADC
    with pytest.warns(UserWarning, match=DIFFERS):
        found = nk.walk(model, data, **weights)
    assert len(found.meta.plan["verification"]["differing"]) == 4 and counts(found) == counts(expected[0])
    with pytest.warns(UserWarning, match=DIFFERS.replace("walk", "walk_parameter")):
        found = walk_parameter(model, data, **bits)
    assert len(found.meta.plan["verification"]["differing"]) == 4 and counts(found) == counts(expected[1])


def test_noises_are_judged_one_by_one(patch: Patch) -> None:
    """A fault that only multiplicative noise meets leaves the additive one alone."""
    model, data = problem("mlp")
    of = targets.Mixture.of

    def wrong(self: Any, table: Any) -> list[Tensor]:
        found = of(self, table)
        return [1.1 * d for d in found] if any(term[0] == "mul" for term in self.powers[0]) else found

    patch.setattr(targets.Mixture, "of", wrong)
    with pytest.warns(UserWarning, match=DIFFERS):
        add, mul = nk.walk(model, data, noise=[nk.Noise(add=1.0), nk.Noise(mul=1.0)], **GRID)
    assert not add.meta.plan["verification"]["differing"]
    assert len(mul.meta.plan["verification"]["differing"]) == 11
    assert counts(mul) == counts(nk.walk(model, data, noise=nk.Noise(mul=1.0), **GRID, compute=PLAIN))


# ------------------------------------------------------------------------------------ no false alarms


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("folded", "recurrent", "noisy layers")])
def test_there_is_no_alarm_without_a_fault(name: str, one_thread: None) -> None:
    """Nor anything near one: the largest difference of sound models stays far from its bound."""
    model, data = problem(name)
    for noise in (NOISES["add"], NOISES["add_mul"], NOISES["fold"]):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            told = nk.walk(model, data, noise=noise, levels=[0.1, 1e4], draws=1, seed=5).meta.plan["verification"]
        assert not told["differing"] and 0 < told["worst"] < 0.25 and told["rows"] == 8
        assert told["sites"] == len(nk.sites(model, data[0][:2]))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_there_is_no_alarm_in_other_types(kind: torch.dtype, one_thread: None) -> None:
    model, (x, y) = problem("mlp", 100)
    study = nk.walk(model.to(kind), (x.to(kind), y), noise=nk.Noise(add=1.0), **GRID)
    assert not study.meta.plan["verification"]["differing"]


def test_jumps_are_no_alarm(one_thread: None) -> None:
    """Converters jump by a code where rounding moves a value over its border."""
    model, data = problem("mlp", 60)
    for seed in range(5):
        study = walk_parameter(
            model, data, lambda n: [DAC(int(n), "row"), ADC(int(n), "row")], [2, 4, 8, 12], seed=seed, draws=2
        )
        assert not study.meta.plan["verification"]["differing"]


class Chaotic(nn.Module):
    """A map that makes differences larger in each of its 60 steps: rounding alone decides."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.a(x))
        for _ in range(60):
            x = torch.frac(2.9 * x)
        return self.o(x)


def test_chaos_is_no_alarm(one_thread: None) -> None:
    torch.manual_seed(0)
    model, x = Chaotic().eval(), torch.randn(30, 6)
    with pytest.warns(UserWarning, match=r"\d+% of the rows have scores that are tied but for rounding"):
        study = nk.walk(model, (x, torch.arange(30) % 4), noise=nk.Noise(add=1.0), **GRID)
    assert not study.meta.plan["verification"]["differing"]


def test_few_rows_and_one_level(one_thread: None) -> None:
    model, (x, y) = problem("mlp", 4)
    for rows in (1, 2, 3, 4):
        study = nk.walk(model, (x[:rows], y[:rows]), noise=nk.Noise(add=1.0), levels=[0.0], draws=1, seed=1)
        assert not study.meta.plan["verification"]["differing"]


# ------------------------------------------------------------------- recordings that mislead, or fail


class Misleading(nn.Module):
    """What follows the rows in ways that a recording of a few clean ones need not see."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.a, self.o = what, nn.Linear(6, 8), nn.Linear(8, 4)
        self.kept: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        if self.what == "last token":
            h = h.unsqueeze(1)[torch.arange(x.shape[0]), -1]
        elif self.what == "branch":
            h = 0.5 * h if h.max() > 6 else h
        elif self.what == "scale of the batch":
            scale = h.abs().max().item() / 7
            h = torch.round(h / scale) * scale
        elif self.what == "cache":
            h = h[self.kept.setdefault(len(h), torch.arange(len(h)))]
        return self.o(h)


@pytest.mark.filterwarnings("ignore:walk. ")
@pytest.mark.parametrize("what", ["last token", "branch", "scale of the batch", "cache"])
def test_models_that_mislead_a_recording_are_counted_as_by_the_plain_engine(what: str, patch: Patch) -> None:
    torch.manual_seed(1)
    model, x = Misleading(what).eval(), torch.randn(300, 6)
    data = x, torch.arange(300) % 4
    walks = [nk.walk(model, data, noise=nk.Noise(add=1.0), **GRID, compute=c) for c in (None, PLAIN)]
    assert counts(walks[0]) == counts(walks[1]) and len({r.correct for r in walks[0].records}) > 2


@pytest.mark.parametrize("where", ["check", "run", "start"])
def test_where_the_recording_fails_the_site_runs_whole(where: str, patch: Patch, tmp_path: Any) -> None:
    """In the check, later (on more rows), or before any site; with a store, whose tasks then are the plain engine's."""
    model, data = problem("mlp", 120)
    expected = nk.walk(model, data, noise=nk.Noise(add=1.0), **GRID, compute=PLAIN)
    if where == "start":
        correct = Tape.run

        def run(self: Any, inputs: Tensor, *rest: Any) -> Any:
            if len(inputs) > 20:
                raise IndexError("index 3 is out of bounds\nand more words")
            return correct(self, inputs, *rest)

        patch.setattr(Tape, "run", run)
    else:
        scores = Suffix.scores

        def failing(self: Any, *args: Any) -> Tensor:
            if self.number == 0 and args[5] > (0 if where == "check" else 20):
                raise IndexError("index 3 is out of bounds\nand more words")
            return scores(self, *args)

        patch.setattr(Suffix, "scores", failing)
    said = r"input \(what was recorded fails: IndexError: index 3 is out of bounds\)"
    seen: list[int] = []
    with pytest.warns(UserWarning, match=said):
        study = nk.walk(
            model, data, noise=nk.Noise(add=1.0), **GRID, store=tmp_path / "a.db", progress=lambda n, _: seen.append(n)
        )
    differing = study.meta.plan["verification"]["differing"]
    assert list(differing) == (["input"] if where != "start" else [s.name for s in nk.sites(model, data[0])])
    whole = [r.correct for r in study.records if r.site in differing]
    assert whole == [r.correct for r in expected.records if r.site in differing]
    assert seen == list(range(1, 2 * len(study.meta.sites) + 1))


@pytest.mark.parametrize("outputs", [3, 1000, 600_000])
def test_every_score_of_a_row_is_looked_at(outputs: int) -> None:
    """However many there are: compared in slices, the largest difference is found wherever it is."""
    plain, bound = torch.zeros(1, 2, outputs), torch.ones(2, outputs, dtype=torch.float64)
    for place in (0, outputs // 2, outputs - 1):
        shared = plain.clone()
        shared[0, 1, place] = 7.0
        assert verification._worst(shared, plain, bound) == 7.0


def test_a_number_by_one_engine_alone_is_a_difference() -> None:
    one, none = torch.ones(1, 1, 2), torch.tensor([[[1.0, math.nan]]])
    bound = torch.ones(1, 2, dtype=torch.float64)
    assert verification._worst(one, none, bound) == verification._worst(none, one, bound) == math.inf
    assert verification._worst(none, none, bound) == 0.0
    assert verification._worst(none, one, bound * math.inf) == 0.0  # where rounding may do anything
