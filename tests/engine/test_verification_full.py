"""Where answers are compared beside the sample: of workers, of everything, of proofs; and scores that are tied."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from verifying import GRID, PLAIN, Patch, counts, problem

import noisykernels as nk
from noisykernels._engine import workers
from noisykernels._engine.evaluator import Evaluator
from noisykernels._graph.suffix import Suffix

# ------------------------------------------------------------------------------------------- workers


def test_a_worker_that_answers_otherwise_is_named_and_not_used(patch: Patch) -> None:
    model, data = problem("mlp", 500)
    expected = nk.walk(model, data, noise=nk.Noise(add=1.0), **GRID)
    correct, bad = workers.evaluate_part, set()

    def wrong(part: Any, problem: Any) -> Any:
        found = correct(part, problem)
        if isinstance(found, workers.Given):
            bad.add(found.worker)
            if found.worker == min(bad):
                for answer in found.answers:
                    answer[:, :, 3] ^= 1
        return found

    patch.setattr(workers, "evaluate_part", wrong)
    patch.setattr(workers, "PREDICTIONS", 1000)
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.warns(UserWarning, match=r"a worker \(.*, process \d+, thread \d+\)"),
    ):
        study = nk.walk(model, data, noise=nk.Noise(add=1.0), **GRID, compute=nk.Compute(executor=executor))
    assert counts(study) == counts(expected)


def test_a_recording_that_fails_at_a_worker_fails_for_all(patch: Patch) -> None:
    model, data = problem("mlp", 500)
    expected = nk.walk(model, data, noise=nk.Noise(add=1.0), **GRID, compute=PLAIN)
    scores = Suffix.scores

    def failing(self: Any, *args: Any) -> Tensor:
        if self.number == 0 and args[5] > 20:
            raise IndexError("index 3 is out of bounds")
        return scores(self, *args)

    patch.setattr(Suffix, "scores", failing)
    with ThreadPoolExecutor(2) as executor, pytest.warns(UserWarning, match=r"input \(what was recorded fails: IndexE"):
        study = nk.walk(model, data, noise=nk.Noise(add=1.0), **GRID, compute=nk.Compute(executor=executor))
    assert [r.correct for r in study.records if r.site == "input"] == [
        r.correct for r in expected.records if r.site == "input"
    ]


# ---------------------------------------------------------------------------- everything, plateaus, ties

FULL = nk.Compute(verify="full")


def swapped_where_there_are_many(patch: Patch) -> None:
    """A fault that a few rows do not show."""
    scores = Suffix.scores

    def wrong(self: Any, *args: Any) -> Tensor:
        found, rows = scores(self, *args), args[5]
        return found.unflatten(0, (-1, rows)).flip(1).flatten(0, 1) if rows > 20 else found

    patch.setattr(Suffix, "scores", wrong)


def test_everything_is_compared_where_that_is_asked(patch: Patch) -> None:
    model, data = problem("mlp", 60)
    sample = nk.walk(model, data, noise=nk.Noise(add=1.0), **GRID)
    full = nk.walk(model, data, noise=nk.Noise(add=1.0), **GRID, compute=FULL)
    told = full.meta.plan["verification"]
    assert full.records == sample.records and not told["differing"]
    assert told["cells"] == 60 * len(full.records) and told["verdicts"] <= 2
    swapped_where_there_are_many(patch)
    wrong = nk.walk(model, data, noise=nk.Noise(add=1.0), **GRID)
    plain = nk.walk(model, data, noise=nk.Noise(add=1.0), **GRID, compute=PLAIN)
    assert counts(wrong) != counts(plain)  # a few rows have not told
    with pytest.warns(UserWarning, match=r"every pass runs the whole model"):
        full = nk.walk(model, data, noise=nk.Noise(add=1.0), **GRID, compute=FULL)
    assert counts(full) == counts(plain)


def test_searches_are_compared_too(one_thread: None) -> None:
    model, data = problem("mlp", 300)
    studies = [nk.walk(model, data, noise=nk.Noise(add=1.0), seed=1, sites="fc*", compute=c) for c in (None, FULL)]
    assert studies[0].records == studies[1].records
    assert studies[1].meta.plan["verification"]["cells"] == studies[1].meta.plan["evaluations"]


def test_a_wrong_proof_is_found(patch: Patch) -> None:
    """Where predictions flip at a level at which none can, the site runs whole."""
    model, data = problem("mlp", 200)
    grid: dict[str, Any] = dict(levels=[1e-7, 5.0], draws=2, seed=3, plateaus=0.05)
    expected = nk.walk(model, data, noise=nk.Noise(add=1.0), **grid)
    assert any(r.status == "proved" for r in expected.records)
    patch.setattr("noisykernels._engine.evaluator.proved_up_to", lambda engine, requests: [10.0] * len(requests))
    with pytest.warns(UserWarning, match="at level 5 predictions flip, which none can"):
        study = nk.walk(model, data, noise=nk.Noise(add=1.0), **grid)
    of_level = [{r.site: r.accuracy for r in s.records if r.level == 5.0} for s in (study, expected)]
    assert of_level[0].keys() == of_level[1].keys() and len(study.meta.plan["verification"]["differing"]) == 11
    assert all(abs(of_level[0][site] - of_level[1][site]) < 0.2 for site in of_level[0])


class Cancels(nn.Module):
    """Scores that cancel: what is left is rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(40, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) - nn.functional.linear(x.flip(1), self.a.weight.flip(1))


def test_a_study_says_that_rounding_alone_decides(one_thread: None) -> None:
    torch.manual_seed(0)
    model, x = Cancels().eval(), torch.randn(200, 40)
    with pytest.warns(UserWarning, match=r"without noise 100% of the rows have scores that are tied but for rounding"):
        study = nk.walk(model, (x, torch.arange(200) % 4), noise=nk.Noise(add=1.0), **GRID, sites="input", compute=FULL)
    told = study.meta.plan["verification"]
    assert study.meta.plan["ties"] == 1.0 and not told["differing"]
    assert 100 < told["verdicts"] < told["cells"] == 800  # so many predictions differ, all by rounding
    model, data = problem("mlp")
    assert nk.walk(model, data, noise=nk.Noise(add=1.0), **GRID, sites="fc1").meta.plan["ties"] < 0.05
    half = nk.walk(model.bfloat16(), (data[0].bfloat16(), data[1]), noise=nk.Noise(add=1.0), **GRID, sites="fc1")
    assert half.meta.plan["ties"] > 0.5 > half.meta.clean - 0.5  # scores that a half type cannot tell apart


def test_a_store_never_mixes_the_engines(patch: Patch, tmp_path: Path) -> None:
    """Whatever came of the check before: a site that runs whole has answers of its own there."""
    model, data = problem("mlp", 120)
    how: dict[str, Any] = dict(noise=nk.Noise(add=1.0), **GRID, store=tmp_path / "a.db")
    shared = nk.walk(model, data, **how)
    whole = nk.walk(model, data, noise=nk.Noise(add=1.0), **GRID, compute=PLAIN)
    correct, calls = Suffix.scores, []
    with patch.context() as fault:
        fault.setattr(Suffix, "scores", lambda self, *args: correct(self, *args) * 1.5)
        for _ in range(2):  # the second time from the store
            with pytest.warns(UserWarning, match="every pass runs the whole model"):
                study = nk.walk(model, data, **how)
            assert counts(study) == counts(whole) and len(study.meta.plan["verification"]["differing"]) == 11
    answers = Evaluator.answers
    patch.setattr(Evaluator, "answers", lambda *args: calls.append(1) or answers(*args))
    again = nk.walk(model, data, **how)
    assert again.records == shared.records and again.meta == shared.meta and not calls


class Transformed(nn.Module):
    """Its forward takes a derivative, or maps over rows."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.o = how, nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.how == "jvp":
            return self.o(sum(torch.func.jvp(torch.tanh, (h,), (torch.ones_like(h),))))
        return self.o(torch.func.vmap(lambda row: torch.softmax(2 * row, 0) + torch.tanh(row))(h))


@pytest.mark.filterwarnings("ignore:walk. every pass")
@pytest.mark.parametrize("how", ["jvp", "vmap"])
def test_models_that_transform_are_walked(how: str, one_thread: None) -> None:
    torch.manual_seed(0)
    model, x = Transformed(how).eval(), torch.randn(60, 6)
    walks = [
        nk.walk(model, (x, torch.arange(60) % 4), noise=nk.Noise(add=1.0), **GRID, sites=["a", "o"], compute=c)
        for c in (None, PLAIN)
    ]
    assert counts(walks[0]) == counts(walks[1]) and walks[1].meta.plan["ties"] < 0.1
