"""Random networks: the engine that shares work, the plain one and a loop that knows only `inject` find the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from differential import Summary, compared, fuzzed, loop, sites_of
from random_networks import PIECES, case_of

from noisykernels._engine.plain import PlainEngine
from noisykernels._engine.shared import SharedEngine

QUICK, FULL, PART = 300, 5000, 100  # seeds, and how many of them a test takes
REACHED = 0.7  # of the networks at least, at a site inside: a fuzzer that sees fall-backs only proves nothing

# Networks that were once wrong without a word, or ended in an error: seeds, and the pieces that are left of them.
REGRESSIONS = [
    (2, "written where it stands"),
    (2, "relu in place of what came"),
    (1, "linear; more than ten rows"),
    (1, "linear; largest feature added"),
    (1, "linear of tokens; last token"),
    (1, "linear of tokens; last token of a linear"),
    (1, "linear of tokens; last token by lengths"),
    (1, "linear of tokens; token by argmax"),
    (1, "linear of tokens; first token by a flat index"),
    (0, "linear; cache of zeros"),
    (1, "linear of tokens; last token of a cache"),
    (0, "linear; batch split"),
    (1, "linear; rows by index"),
    (0, "linear; numpy"),
    (4, "linear of tokens; longest length; mean of tokens"),
    (1, "linear; branch on the largest"),
    (1, "linear; branch on any"),
    (1, "linear; branch on all"),
    (2, "linear; scale of the batch"),
    (1, "linear; number of loops"),
    (1, "linear; while large"),
    (0, "linear; slices by a number"),
    (0, "linear; number of some rows"),
    (0, "linear; numbers of a list"),
    (1, "linear; f-string"),
    (0, "linear; unique"),
    (0, "linear; in"),
    (0, "linear; count_nonzero"),
    (3, "linear; tensor of a number"),
    (1, "linear of tokens; positions counted up"),
    (0, "linear of tokens; positions of numpy"),
    (1, "linear of tokens; a mesh of positions; mean of tokens"),
    (1, "linear; rows as a table"),
    (1, "linear; rows gathered"),
    (1, "linear; taken from the flat"),
    (0, "linear; cache of places"),
    (1, "linear; scale of a side branch"),
    (1, "linear; branch on a side branch"),
    (2, "linear; branch on one element"),
    (2, "linear; statistics in numpy"),
    (1, "linear; bool of a tensor"),
]


pytestmark = pytest.mark.usefixtures("one_thread")  # on which small networks are quickest


def parts() -> list[Any]:
    return [
        pytest.param(first, id=f"{first}-{first + PART - 1}", marks=[pytest.mark.full] if first >= QUICK else [])
        for first in range(0, FULL, PART)
    ]


@pytest.mark.parametrize("first", parts())
def test_the_engines_find_what_a_loop_finds(first: int) -> None:
    summary = fuzzed(range(first, first + PART))
    print(summary)
    assert not summary.failed, summary.told()
    assert summary.reached >= REACHED * summary.networks, summary
    assert not summary.caught, summary.caught[0]  # a recording that was wrong, or a false alarm
    assert summary.networks >= 0.95 * PART, summary.skipped


@pytest.mark.parametrize(("seed", "names"), REGRESSIONS)
def test_what_was_wrong_once(seed: int, names: str) -> None:
    found = compared(case_of(seed, names.split("; ")))
    assert not found.failures and not found.skipped, found


@pytest.mark.full
@pytest.mark.parametrize("name", PIECES)
def test_each_piece_by_itself(name: str) -> None:
    """Behind and before a layer, so that there are sites on either side."""
    ahead = {"v": ["linear"], "s": ["linear of tokens"], "i": ["convolution"]}[PIECES[name].takes]
    behind = {"v": ["linear"], "s": ["mean of tokens"], "i": ["mean of pixels"]}[PIECES[name].gives]
    summary = Summary()
    for seed in range(8):
        summary.add(compared(case_of(seed, [*ahead, name, *behind])))
    assert not summary.failed, summary.told()


def test_a_case_is_a_function_of_its_seed() -> None:
    for seed in range(10):
        case, again = case_of(seed), case_of(seed)
        assert case == again and case.text() == again.text() and torch.equal(case.data(), again.data())
        states = case.model().state_dict(), again.model().state_dict()
        assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
        assert case == case_of(seed, case.names.split("; "))
        for site in sites_of(case)[:2]:
            one, other = loop(case, site), loop(case, site)
            assert all(torch.equal(one[cell][0], other[cell][0]) for cell in one)


def test_most_pieces_occur() -> None:
    met = {piece.name for seed in range(QUICK) for piece in case_of(seed).chain}
    assert len(met) > 0.7 * len(PIECES), PIECES.keys() - met
    assert met | {piece.name for seed in range(QUICK, 1000) for piece in case_of(seed).chain} == PIECES.keys()


@pytest.mark.parametrize("engine", [SharedEngine, PlainEngine])
def test_an_engine_that_is_wrong_is_seen(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes each row for the next in one chunk of rows, as a recording that follows a wrong index does."""
    chunk = engine.chunk

    def turned(self: Any, requests: Any, first: int, data: Any) -> Any:
        return chunk(self, requests, first, (*data[:2], data[2].roll(1)))

    monkeypatch.setattr(engine, "chunk", turned)
    assert len(fuzzed(range(20)).failed) > 9
