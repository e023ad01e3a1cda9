"""Studies say what share of a model they are about, and name what they miss."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import noisykernels as nk
from noisykernels.experiments import layer_formats, order_sensitivity, sweep_formats
from noisykernels.study import Result
from noisykernels.walking import walk_parameter

CHIP: Any = [nk.WeightNoise(add=0.1)]


class Gated(nn.Module):
    """A gate that no array holds, and a product of values with themselves, beside two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.gate = nn.Linear(6, 6), nn.Linear(6, 2), nn.Parameter(torch.ones(1, 6))

    def forward(self, x):
        x = torch.relu(self.first(x)) * self.gate
        return self.last(torch.cumsum(x, 1) + x * (x * x).sum(1, keepdim=True))


MODEL = Gated().eval()
X = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
DATA = X, MODEL(X).argmax(1)
GRID: dict[str, Any] = dict(draws=1, seed=1)
LEVELS: dict[str, Any] = dict(noise=nk.Noise(add=1.0), levels=[0.1, 100.0], **GRID)
LAST = 12 / 48  # of the multiply-adds

STUDIES: dict[str, tuple[Callable[[], Any], dict[str, float]]] = {
    "chips": (lambda: nk.chips(MODEL, DATA, hardware=CHIP, **GRID), {"hardware": 1.0}),
    "chips of one layer": (lambda: nk.chips(MODEL, DATA, hardware={"last": CHIP}, **GRID), {"hardware": LAST}),
    "chips with noise": (
        lambda: nk.chips(MODEL, DATA, hardware={"last": CHIP}, noise=nk.Noise(add=1.0), sites="first", **GRID),
        {"noise": 1 - LAST, "hardware": LAST},
    ),
    "vote": (lambda: nk.vote(MODEL, DATA, noise=nk.Noise(add=1.0), sites=":relu", **GRID), {"noise": 0.0}),
    "order": (lambda: order_sensitivity(MODEL, DATA, nk.Serial(low=-1), permutations=2, seed=1), {"arithmetic": 1.0}),
    "formats": (lambda: sweep_formats(MODEL, DATA, ["fp16"], seed=1), {"arithmetic": 1.0}),
    "formats of layers": (lambda: layer_formats(MODEL, DATA, "fp16", evaluations=2, seed=1), {"arithmetic": 1.0}),
    "walk": (lambda: nk.walk(MODEL, DATA, **LEVELS), {"noise": 1.0}),
    "walk of one site": (lambda: nk.walk(MODEL, DATA, sites="last", **LEVELS), {"noise": LAST}),
    "walk of weights": (lambda: nk.walk(MODEL, DATA, target="weight", **LEVELS), {"hardware": 1.0}),
    "walk of one weight": (
        lambda: nk.walk(MODEL, DATA, target="weight", sites="first", **LEVELS), {"hardware": 1 - LAST}
    ),
    "walk of a parameter": (
        lambda: walk_parameter(MODEL, DATA, lambda value: [nk.WeightNoise(add=value)], [0.1, 9.0], name="x",
                               larger="worse", **GRID), {"hardware": 1.0}
    ),
}  # fmt: skip
WHOLE = [name for name in STUDIES if not any(word in name for word in ("one", "noise", "vote"))]


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[Any, list[str]]]:
    """Each study, and what it has warned of."""
    results = {}
    for name, (study, _) in STUDIES.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results[name] = study(), [str(w.message) for w in caught if "does not reach" in str(w.message)]
    return results


@pytest.mark.parametrize("name", STUDIES)
def test_the_share_is_in_the_result_its_text_and_its_pages(name: str, found: Any, tmp_path: Path) -> None:
    result, _ = found[name]
    expected = STUDIES[name][1]
    covered = result.meta.plan["covered"] if isinstance(result, nk.Study) else result.covered
    assert covered == pytest.approx(expected)
    assert "of the multiply-adds" in (repr(result) if name == "vote" else result.table())
    assert Result.load(result.save(tmp_path / "result.json")) == result
    pytest.importorskip("matplotlib")
    assert "of the multiply-adds" in result.report(tmp_path / "page.html").read_text()


@pytest.mark.parametrize("name", STUDIES)
def test_parameters_that_are_missed_are_named_once(name: str, found: Any) -> None:
    """Where all arrays are meant."""
    told = found[name][1]
    missed = name in WHOLE and name != "walk"
    assert len(told) == missed
    assert all(": hardware does not reach gate: of no contraction the weight" in text for text in told)
