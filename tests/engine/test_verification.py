"""The engine that shares work is held against the plain one before it is trusted: planted faults are found, their sites
run whole, and models without a fault raise no alarm."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from traced_models import MODELS, NOISES, made

import noisykernels as nk
from noisykernels._engine import targets
from noisykernels._engine.shared import SharedEngine
from noisykernels._graph import linearity, suffix
from noisykernels._graph.suffix import Suffix
from noisykernels._graph.tape import Tape
from noisykernels.hardware import ADC, DAC
from noisykernels.walking import walk_parameter
from noisykernels.zoo import MLP

DIFFERS = r"^walk: for these sites every pass runs the whole model: .* \(at level .* times what rounding explains\)"
GRID: dict[str, Any] = dict(levels=[0.1, 2.0], draws=2, seed=3)
PLAIN = nk.Compute(engine="plain")


def problem(name: str = "residual", rows: int = 40) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    model, x = made(name, rows)
    with torch.inference_mode():
        return model, (x, model(x).argmax(1))


def counts(study: nk.Study) -> list[Any]:
    return [(r.site, r.level, r.draw, r.correct) for r in study.records]


# ------------------------------------------------------------------------------------- planted faults

Patch = pytest.MonkeyPatch


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
    correct = suffix.norm_scale
    patch.setattr(suffix, "norm_scale", lambda given: (correct(given)[0], correct(given)[1] * 0))


def swapped_rows(patch: Patch) -> None:
    correct = SharedEngine._cut

    def wrong(self: Any, target: Any, site: str, clean: Any, low: int, high: int, rows: int) -> Any:
        found = correct(self, target, site, clean, low, high, rows)
        number = self.tape.sites[site]
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

    def wrong(tape: Tape, number: int, value: Tensor, copies: int) -> Tensor:
        dim = tape.row_dims[number]
        assert dim is not None
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


@pytest.fixture
def patch(monkeypatch: Patch, one_thread: None) -> Iterator[Patch]:
    yield monkeypatch


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
