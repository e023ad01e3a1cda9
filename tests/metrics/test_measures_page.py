"""docs/results/measures.md is true: every measure in every study by every engine is what a plain loop finds."""

from __future__ import annotations

import pytest
from measure_cases import CASES
from measures_page import PAGE, row

SOME = ("accuracy", "perplexity", "kl", "mean_iou", "a function of a pass")  # of each law; all of them with --full


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
