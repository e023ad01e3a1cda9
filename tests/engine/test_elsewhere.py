"""Models whose code asks something of its inputs, such as whether a mask hides any token, and goes another way by the
answer: the engine that shares work takes the way of most chunks, and both engines find the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._graph.recorder import record_tape
from noisykernels._graph.tape import NotTraceable
from noisykernels.injection import inject

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTH, CHUNK = 6, 5

Way = Callable[[Tensor, Tensor], Tensor]


def by_all(h: Tensor, mask: Tensor) -> Tensor:
    if mask.all():  # another way, on purpose of other values
        return h.mean(1)
    return (h * mask[..., None]).sum(1) / 3


def honest(h: Tensor, mask: Tensor) -> Tensor:
    """A short cut, as libraries take it: each row gets the same on both ways."""
    return h.sum(1) / LENGTH if mask.all() else (h * mask[..., None]).sum(1) / LENGTH


def by_number(h: Tensor, mask: Tensor) -> Tensor:
    longest = int(mask.sum(1).max())
    return h[:, :longest].sum(1) / longest


def by_list(h: Tensor, mask: Tensor) -> Tensor:
    return h[:, 0] if mask.amin(0).tolist() == [1] * LENGTH else h[:, :2].sum(1)


def by_equal(h: Tensor, mask: Tensor) -> Tensor:
    return h.sum(1) if torch.equal(mask, torch.ones_like(mask)) else h.amax(1)


def by_item(h: Tensor, mask: Tensor) -> Tensor:
    return h.sum(1) * (1 + mask.min().item())


class Asking(nn.Module):
    """Words, and a mask that its code looks at."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.words, self.f, self.out = nn.Embedding(9, 4), nn.Linear(4, 6), nn.Linear(6, 3)
        self.way = way

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.out(self.way(self.f(self.words(ids)).relu(), mask))  # type: ignore[no-any-return]


def data(padded: list[bool]) -> dict[str, Tensor]:
    """Rows, of which some are padded."""
    rows = len(padded)
    ids = torch.randint(9, (rows, LENGTH), generator=torch.Generator().manual_seed(2))
    short = torch.tensor(padded)[:, None] & (torch.arange(LENGTH) > 3)
    return {"ids": ids, "mask": (~short).long()}


def walked(model: nn.Module, batch: dict[str, Tensor], engine: str, **how: Any) -> tuple[Any, list[str]]:
    labels = torch.arange(len(batch["ids"])) % 3
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        study = nk.walk(
            model, (batch, labels), noise=nk.Noise(add=1.0), levels=[0.1, 0.7], draws=2, seed=3,
            compute=nk.Compute(engine=engine, batch_rows=CHUNK), **how,
        )  # fmt: skip
    found = {(r.site, r.level, r.draw): r.accuracy if hasattr(r, "accuracy") else r.value for r in study.records}
    return found, [str(w.message) for w in said if "whole" in str(w.message)]


FULL, PADDED = [False] * CHUNK, [True] * CHUNK
LAST = [False] * (CHUNK - 1) + [True]
CASES = {  # which rows are padded, and those that run whole
    "no row is padded": (FULL * 3, ""),
    "all are": (PADDED * 3, ""),
    "one of each chunk": (LAST * 3, ""),
    "a chunk is not": (PADDED + FULL + PADDED, "5 to 9"),
    "one chunk is": (FULL + PADDED + FULL, "5 to 9"),
    "the first is not": (FULL + PADDED + PADDED, "0 to 4"),
    "the last row is not": (PADDED + PADDED + [False], "10 to 10"),
    "the last rows are": (FULL * 4 + [True, True], "20 to 21"),  # beyond those that are looked at in other company
}


@pytest.mark.parametrize("way", (by_all, by_number, by_list, by_equal, by_item))
@pytest.mark.parametrize("case", CASES)
def test_chunks_that_go_another_way_run_whole(way: Way, case: str) -> None:
    rows, apart = CASES[case]
    torch.manual_seed(1)
    model, batch = Asking(way).eval(), data(rows)
    found, said = walked(model, batch, "shared")
    assert found == walked(model, batch, "plain")[0]
    told = [line.rpartition(": ")[2] for line in said]
    if way is by_number and case == "one of each chunk":  # a longest row in each: padded ones run with it
        apart = ""
    assert told == ([apart] if apart else []), said


@pytest.mark.parametrize("metric", ["f1", "nll", "ece"])
def test_sums_and_numbers_of_such_chunks(metric: str) -> None:
    torch.manual_seed(1)
    model, batch = Asking(by_all).eval(), data(PADDED + FULL + PADDED)
    levels = dict(metric=metric, at=nk.Drop(1e-3)) if metric != "nll" else dict(metric=metric, at=nk.Ratio(1.01))
    found, said = walked(model, batch, "shared", **levels)
    assert said and found == pytest.approx(walked(model, batch, "plain", **levels)[0], rel=1e-5)


def test_plateaus() -> None:
    torch.manual_seed(1)
    model, batch = Asking(honest).eval(), data((PADDED + FULL) * 8)
    how = dict(plateaus=0.05)
    assert walked(model, batch, "shared", **how)[0] == walked(model, batch, "plain", **how)[0]


def test_a_search() -> None:
    torch.manual_seed(1)
    model, batch = Asking(honest).eval(), data((PADDED + FULL) * 8)
    labels = model(**batch).argmax(1)
    found = []
    for engine in ("shared", "plain"):
        how = dict(compute=nk.Compute(engine=engine, batch_rows=CHUNK), search=nk.Search(rel_ci=0.3), seed=3)
        found.append(nk.walk(model, (batch, labels), noise=nk.Noise(add=1.0), sites=["f:linear#0"], **how).midpoints())
    (shared,), (plain,) = found
    assert shared.low < plain.high and plain.low < shared.high, (shared, plain)


class Head(Asking):
    """A head that only some rows use."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        h = self.words(ids).sum(1)
        loud = self.f(h)
        return self.out(loud) if mask.all() else self.out(torch.cat([h, h[:, :2]], -1))


def test_a_site_that_only_some_rows_use_is_not_idle() -> None:
    torch.manual_seed(1)
    model, batch = Head(by_all).eval(), data(PADDED + FULL + PADDED)
    found, said = walked(model, batch, "shared")
    assert found == walked(model, batch, "plain")[0] and len(said) == 2, said


class OfValues(nn.Module):
    """Asks of values that noise reaches."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.words, self.f = nn.Embedding(9, 4), nn.Linear(4, 3)
        self.where = where

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        h = self.f(self.words(ids)).sum(1)
        of = {"site": h, "parameter": self.words(ids), "rounded": (h * mask.sum(1, keepdim=True)).long(), "input": mask}
        return h if (of[self.where] > 0).all() else -h


@pytest.mark.parametrize("where", ["site", "parameter", "rounded", "input"])
def test_what_noise_may_reach_is_no_question(where: str) -> None:
    model, batch = OfValues(where).eval(), data(PADDED)
    if where == "input":
        batch["mask"] = batch["mask"].float()
    with inject(model, None, example_input=batch) as injected, pytest.raises(NotTraceable, match="values into numbers"):
        record_tape(injected, batch)  # type: ignore[arg-type]
