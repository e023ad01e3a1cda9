"""What docs/results/language.md says of levels is what is made up in them, and its baselines are those of the text."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "bench")
    return importlib.import_module("language_page"), importlib.import_module("language_baselines")


def kept(page: ModuleType, spread: float = 0.01, parts: int = 3) -> dict[str, Any]:
    """Four blocks: Q, K and V stand half as much as the rest, each block four fifths of the one before; weights a third
    of outputs, but in the largest of a layer three times as much; caches twice what projections do."""
    found: dict[str, Any] = {"llama/about": {}}
    units = {"outputs, rms": 1.0, "outputs, max": 1.0, "weights, channel": 1 / 3, "weights, layer": 3.0}
    for part in range(parts):
        off = math.exp(spread * (part - 1))
        places = {f"{b}.{k}": 0.8**b * (0.5 if k in page.FIRST else 1.0) * off for b in range(4) for k in page.KINDS}
        for unit, by in units.items():
            found[f"llama/levels/{unit}/{part}"] = {place: [v * by, "ok"] for place, v in places.items()}
        whole = math.exp(sum(map(math.log, places.values())) / len(places))
        caches = {f"{b}.{c}": [2 * whole * off, "ok"] for b in range(4) for c in ("key", "value")}
        found[f"llama/levels/caches, rms/{part}"] = caches
        found[f"llama/ratios/{part}"] = {place: dict.fromkeys(units, 1.0) for place in places}
        found[f"llama/under/nothing/{part}"] = [0.1, 2.0]
    return found


def test_claims_are_held_against_levels(pages: tuple[ModuleType, ModuleType]) -> None:
    page, _ = pages
    model = page.Model.of(kept(page), "llama")
    numbers = {
        c.text: {u: math.exp(page.Interval.of(v).mean) for u, v in c.measured(model).items()} for c in page.CLAIMS
    }
    assert numbers["Q, K, V are the weakest, feed-forward layers robust"]["outputs, rms"] == pytest.approx(2)
    assert numbers["feed-forward layers are the weakest"]["weights, layer"] == pytest.approx(0.5)
    assert numbers["higher layers are weaker"]["outputs, max"] == pytest.approx(0.8**-3)
    assert numbers["the first block is the weakest"]["outputs, rms"] == pytest.approx(0.8**2)
    assert numbers["shallow layers are where redundancy helps most"]["outputs, rms"] == pytest.approx(0.8**2)
    assert numbers["caches are robust"]["all / all projections"] == pytest.approx(2)
    weights = numbers["weights stand more noise than outputs"]
    assert weights["weights, channel / outputs, rms"] == pytest.approx(1 / 3)
    assert weights["weights, layer / outputs, max"] == pytest.approx(3)
    said = {row.split(" | ")[0][2:].partition(":")[0]: row for row in page.claims([model]).splitlines()[2:]}
    assert said["weights stand more noise than outputs"].endswith("**depends on the unit** |")
    assert said["higher layers are weaker"].endswith("**agrees** |")
    assert said["feed-forward layers are the weakest"].endswith("**does not** |")


def test_parts_that_differ_tell_nothing(pages: tuple[ModuleType, ModuleType]) -> None:
    page, _ = pages
    assert page.verdict([page.Interval.of([1.0, -1.0, 0.5])]) == "cannot be told"
    assert page.verdict([page.Interval.of([1.0])]) == "cannot be told"  # one part bounds nothing
    assert page.verdict([page.Interval.of([1.0, 1.1]), page.Interval.of([1.0, -1.0])]).startswith("agrees, as far as")
    low, high = page.Interval.of([0.0, 1.0, 2.0])[1:]
    assert (low, high) == pytest.approx((1 - 4.303 / 3**0.5, 1 + 4.303 / 3**0.5), abs=1e-3)


def test_the_page_holds_all_of_it(pages: tuple[ModuleType, ModuleType]) -> None:
    page, _ = pages
    text = page.page(kept(page, spread=0.0))
    assert "| q_proj | 0.36 (0.36 .. 0.36) |" in text and "| block 3 |" in text and "| value | " in text
    assert "Not measured: SmolLM2-135M-Instruct." in text and "3 parts of 128 tokens" in text
    assert "| weights stand more noise than inputs" in text and "| **not measured** |" in text  # a unit that is missing
    assert "| nothing | 3 | 0.1 (0.1 .. 0.1) | 2 (2 .. 2) |" in text


def test_baselines_are_those_of_the_text(pages: tuple[ModuleType, ModuleType]) -> None:
    _, baselines = pages
    ids = torch.arange(8001) % 4
    text = {"input_ids": ids[:-1].view(-1, 8), "labels": ids[1:].view(-1, 8)}
    assert baselines.alone(text, text, 4) == pytest.approx(4)
    assert baselines.pairs(text, text, 4) == pytest.approx(1, abs=2e-3)
    assert 4 < baselines.alone(text, text, 8) < 4.01  # tokens that were never met take a little
