"""What is said of a target elsewhere agrees with the target."""

from __future__ import annotations

import inspect

import pytest

from noisykernels._engine import targets
from noisykernels._engine.targets import Target
from noisykernels.stats import Meta

TARGETS: list[type[Target]] = [
    thing for thing in vars(targets).values()
    if inspect.isclass(thing) and issubclass(thing, Target) and not inspect.isabstract(thing)
]  # fmt: skip


def test_all_are_found_and_have_names_of_their_own() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS) >= 3


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_intervals_know_whether_rows_share_the_noise(target: type[Target]) -> None:
    meta = Meta(
        seed=0, noise={}, levels=(1.0,), draws=(0,), rows=1, clean_correct=1, classes=2, sites=("input",),
        stream_version=1, target=target.name,
    )  # fmt: skip
    assert meta.independent_rows is not target.shares_rows
