"""docs/results/measures.md is true: every measure in every study by every engine is what a plain loop finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from measures_page import CASES, PAGE, row

import noisykernels as nk
from noisykernels.walking import StoreError

SOME = (
    "accuracy",
    "perplexity",
    "kl",
    "mean_iou",
    "a function of a pass",
    "nll, weighted",
)  # all with --full


@pytest.mark.parametrize("name", SOME)
def test_a_line_of_the_page(name: str) -> None:
    assert row(name) in PAGE.read_text().splitlines()


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in CASES if name not in SOME])
def test_the_other_lines(name: str) -> None:
    assert row(name) in PAGE.read_text().splitlines()


def test_the_page_has_every_measure_and_no_difference() -> None:
    lines = PAGE.read_text().splitlines()
    for name in CASES:
        assert sum(line.startswith(f"| {name} |") for line in lines) == 1
    assert not any("differs" in line for line in lines)


@pytest.mark.parametrize("name", ["nll", "mean_iou", "a function of a pass"])
def test_a_store_keeps_it_and_refuses_another_measure(name: str, tmp_path: Path) -> None:
    case, store = CASES[name], tmp_path / "a.db"

    def walked(metric: Any = case.metric) -> Any:
        return nk.walk(case.model(), case.data(), noise=nk.Noise(add=1.0), levels=[0.3, 3.0], draws=2, seed=1,
                       sites=["one:linear#0"], metric=metric, store=store)  # fmt: skip

    first = walked()
    assert walked().records == first.records == nk.Study.load(first.save(tmp_path / "a.json")).records
    if name == "a function of a pass":  # another function of the same name
        with pytest.raises(StoreError, match=r"the contraction plan differs .*metric: WholePass"):
            walked(nk.metrics.WholePass(lambda y, t: (y - t).mean(), True, "correlation"))
    other = {"nll": "brier", "mean_iou": "token_accuracy"}.get(name, "mse")
    with pytest.raises(StoreError):
        walked(other)
